"""``qexport fix``: the repaired bf16 checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qexport.cli._export import export_format
from qexport.cli._options import DRY_RUN, JSON, OUT, OVERWRITE, THREADS, model_argument, mtp_options
from qexport.cli._output import Output
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.run.target import Item


@click.command("fix")
@model_argument
@OUT
@mtp_options
@DRY_RUN
@THREADS
@OVERWRITE
@JSON
def command(**given: Any) -> None:
    """Write MODEL again with its quirks repaired and, if asked, the base model's MTP head grafted.

    Weights keep their dtype and their shards; tokenizer files are copied byte for byte unless a repair
    concerns them. The source is not touched.

    \b
    Examples:
      qexport fix ./merged -o ./repaired
      qexport fix ./merged -o ./with-head --mtp graft --mtp-from Qwen/Qwen3.5-9B
    """
    export_format("merged", given, _Fixing(as_json=given["as_json"]), folder="{name}-fixed")


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
        (item,), head = items, self._diagnosis.repaired.mtp_origin
        self.document(
            {
                "out": item.folder.name,
                "receipt": item.receipt.name,
                "files": [{"name": f.name, "bytes": f.size, "sha256": f.sha256} for f in item.written],
                "findings": [finding.to_json() for finding in self._diagnosis.findings],
                "mtp": head,
            }
        )
        self.text(f"Wrote {item.folder} ({len(item.written)} files; MTP head: {head}).")
        self.text(f"Receipt: {item.receipt}")
