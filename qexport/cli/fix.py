"""``qexport fix``: the repaired bf16 checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qexport.cli._export import export_format
from qexport.cli._options import DRY_RUN, JSON, OUT, OVERWRITE, THREADS, model_argument, tower_options
from qexport.cli._output import Output
from qexport.errors import UsageProblem
from qexport.sizes import counted, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.run.target import Item


@click.command("fix")
@model_argument
@OUT
@tower_options
@click.option(
    "--form",
    type=click.Choice(["multimodal", "text"]),
    help="The form that is written: multimodal, with a vision tower, which has to be there or is taken of "
    "the base; or text only.  [default: multimodal where there is a tower]",
)
@DRY_RUN
@THREADS
@OVERWRITE
@JSON
def command(**given: Any) -> None:
    """Write MODEL again with its quirks repaired and, if asked, the base model's MTP head and vision tower.

    Weights keep their dtype and their shards; tokenizer files are copied byte for byte unless a repair
    concerns them. The source is not touched.

    \b
    Examples:
      qexport fix ./merged -o ./repaired
      qexport fix ./merged -o ./whole --base Qwen/Qwen3.5-9B
      qexport fix ./merged -o ./text --form text
    """
    _shape(given)
    export_format("merged", given, _Fixing(as_json=given["as_json"]), folder="{name}-fixed")


def _shape(given: dict[str, Any]) -> None:
    """``--form`` as what becomes of the tower."""
    form, mode = given["form"], given["vision_mode"]
    if form is None:
        return
    if (form == "text") != (mode == "drop") and mode != "auto":
        raise UsageProblem(f"--form {form} and --vision {mode} contradict each other", hint="Leave one out.")
    if form == "text":
        given["vision_mode"] = "drop"
        return
    named = [given[key] for key in ("vision_from", "base", "mtp_from") if given[key] is not None]
    if mode == "auto" and not named:
        given["vision_mode"] = "keep"
    elif given["vision_from"] is None and given["base"] is None and named:
        given["vision_from"], given["vision_from_revision"] = given["mtp_from"], given["mtp_from_revision"]


class _Fixing(Output):
    """Shows one checkpoint that is not run."""

    def diagnosed(self, diagnosis: Diagnosis) -> None:
        super().diagnosed(diagnosis)
        self._diagnosis = diagnosis

    def planned(self, items: Sequence[Item]) -> None:
        for item in items:
            self.say(f"the repaired checkpoint, {size_text(item.plan.size)}, into {item.folder}")
            for note in item.plan.notes:
                self.say(f"  {note}")

    def made(self, items: Sequence[Item], receipts: Sequence[Path]) -> None:
        (item,), repaired = items, self._diagnosis.repaired
        head, tower = repaired.mtp_origin, repaired.vision_origin
        self.document(
            {
                "out": item.folder.name,
                "receipt": item.receipt.name,
                "files": [{"name": f.name, "bytes": f.size, "sha256": f.sha256} for f in item.written],
                "findings": [finding.to_json() for finding in self._diagnosis.findings],
                "mtp": head,
                "vision": tower,
            }
        )
        self.text(
            f"Wrote {item.folder} ({counted(len(item.written), 'file')}; MTP head: {head}; vision "
            f"tower: {tower})."
        )
        self.text(f"Receipt: {item.receipt}")
