"""``qexport fix``: the repaired bf16 checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qexport.cli._options import JSON, OUT, OVERWRITE, THREADS, model_argument, mtp_options
from qexport.cli._output import Output
from qexport.sizes import size_text


@click.command("fix")
@model_argument
@OUT
@mtp_options
@click.option("--dry-run", is_flag=True, help="Print the plan: every tensor, exact sizes. Writes nothing.")
@THREADS
@OVERWRITE
@JSON
def command(
    out: Path | None, dry_run: bool, threads: int | None, overwrite: bool, as_json: bool, **given: Any
) -> None:
    """Write MODEL again with its quirks repaired and, if asked, the base model's MTP head grafted.

    Weights keep their dtype and their shards; tokenizer files are copied byte for byte unless a repair
    concerns them. The source is not touched.

    \b
    Examples:
      qexport fix ./merged -o ./repaired
      qexport fix ./merged -o ./with-head --mtp graft --mtp-from Qwen/Qwen3.5-9B
    """
    from qexport.cli._report import say_findings, show_plans
    from qexport.pipeline.fix import fixed_name, plan_fix, write_fix
    from qexport.pipeline.model import ModelChoice, examine, fetched, sources_of

    output = Output(as_json=as_json)
    choice = ModelChoice(
        given["model"], given["revision"], given["mtp"], given["mtp_from"], given["mtp_from_revision"]
    )
    diagnosis = examine(choice, download=False)
    folder = out or Path(fixed_name(diagnosis))
    sources_of(diagnosis).refuse(folder)
    say_findings(output, diagnosis)
    plan = plan_fix(diagnosis)
    if dry_run:
        show_plans(output, [plan], folder)
        return
    diagnosis = fetched(choice, diagnosis)
    plan = plan_fix(diagnosis)
    output.say(f"the repaired checkpoint, {size_text(plan.size)}, into {folder}")
    for note in plan.notes:
        output.say(f"  {note}")
    with output.progress(plan.size, "writing") as progress:
        written, receipt = write_fix(
            diagnosis, plan, folder, threads=threads, overwrite=overwrite, progress=progress, say=output.say
        )
    output.document(
        {
            "out": folder.name,
            "receipt": receipt.name,
            "files": [{"name": f.name, "bytes": f.size, "sha256": f.sha256} for f in written],
            "findings": [finding.to_json() for finding in diagnosis.findings],
            "mtp": diagnosis.repaired.mtp_origin,
        }
    )
    output.text(f"Wrote {folder} ({len(written)} files; MTP head: {diagnosis.repaired.mtp_origin}).")
    output.text(f"Receipt: {receipt}")
