"""``qexport imatrix``: an importance matrix, the model's layers in memory one after the other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._options import JSON, OVERWRITE, THREADS, calibration_options, model_argument, mtp_options
from qexport.cli._output import Output
from qexport.errors import InputError
from qexport.sizes import size_text

if TYPE_CHECKING:
    from qexport.evidence.imatrix_file import ImportanceMatrix


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("imatrix")
@model_argument
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write.  [default: NAME-imatrix.gguf_file here]",
)
@click.option(
    "--corpus",
    type=_FILE,
    help="Text, or JSON lines with messages, text or input_ids.  [default: the corpus inside the package]",
)
@click.option("--merge", type=_FILE, multiple=True, help="A matrix that is added to the result. Repeatable.")
@mtp_options
@calibration_options
@click.option("--show-statistics", is_flag=True, help="Print what the matrix says of each tensor.")
@click.option("--dry-run", is_flag=True, help="Tokenize and plan; collect and write nothing.")
@THREADS
@OVERWRITE
@JSON
def command(model: str, show_statistics: bool, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Collect an importance matrix for MODEL: which input columns matter to each of its weights.

    The model is never in memory as a whole: one layer at a time is read, all of the corpus goes through it,
    and it is let go. The MTP head gets its data, too, and every expert its own. The file is llama.cpp's, for
    `qexport gguf --imatrix FILE` and llama-quantize alike.

    Where MODEL is an importance matrix, its statistics are printed.

    \b
    Examples:
      qexport imatrix ./merged --mtp-from Qwen/Qwen3.5-9B -o imatrix.gguf_file
      qexport imatrix ./merged --corpus mine.jsonl --merge imatrix.gguf_file -o both.gguf_file
      qexport imatrix imatrix.gguf_file --show-statistics
    """
    from qexport.cli._calibrate import calibration_job, run_calibration
    from qexport.cli._report import say_findings
    from qexport.evidence.imatrix_file import read_imatrix
    from qexport.formats.gguf.file_name import is_model_name
    from qexport.pipeline.calibrate import expected, imatrix_name, prepare
    from qexport.pipeline.imatrix import ImatrixJob, check_imatrix, write_imatrix
    from qexport.pipeline.model import ModelChoice, examine, fetched

    output = Output(as_json=as_json)
    if Path(model).is_file():
        matrix = read_imatrix(Path(model))
        output.document({**_json(matrix), "statistics": _statistics_json(matrix)})
        _show_statistics(output, matrix)
        return
    choice = ModelChoice(
        model, given["revision"], given["mtp"], given["mtp_from"], given["mtp_from_revision"]
    )
    diagnosis = examine(choice, download=False)
    say_findings(output, diagnosis)
    job = calibration_job(given, given["corpus"], given["merge"])
    view = diagnosis.repaired.view()
    target: Path = given["out"] or Path(imatrix_name(view))
    prepared = prepare(job, view, target.name)
    chunks, plan = prepared.chunks, expected(prepared, view)
    imatrix = ImatrixJob(choice, target, job, overwrite=given["overwrite"])
    size = check_imatrix(imatrix, diagnosis, plan, output.say, dry_run=dry_run)
    if dry_run:
        output.document({"file": target.name, "bytes": size, "tokens": chunks.tokens, **_json(plan)})
        output.text(
            f"{target.name}: {len(plan.sums)} tensors from {chunks.tokens} tokens ({chunks.dataset}), "
            f"{size_text(size)}"
        )
        return
    diagnosis = fetched(choice, diagnosis)
    collected = run_calibration(output, prepared, diagnosis.repaired.view())
    written, receipt, notes = write_imatrix(imatrix, diagnosis, collected, output.say)
    if is_model_name(written.name):
        notes = (
            *notes,
            f"llama.cpp and the Hub will take {written.name} for a model: end its name in .gguf_file",
        )
    for note in notes:
        output.say(f"  {note}")
    document = {"file": written.name, "bytes": written.size, "sha256": written.sha256, **collected.facts}
    if show_statistics:
        document["statistics"] = _statistics_json(collected.matrix)
    output.document({**document, **_json(collected.matrix), "notes": list(notes), "receipt": receipt.name})
    if show_statistics:
        _show_statistics(output, collected.matrix)
    output.text(f"{target}: {len(collected.matrix.sums)} tensors, {size_text(written.size)}")
    output.text(f"Receipt: {receipt}")


def _json(matrix: ImportanceMatrix) -> dict[str, Any]:
    return {
        "entries": len(matrix.sums),
        "datasets": list(matrix.datasets),
        "chunks": matrix.chunk_count,
        "chunk_size": matrix.chunk_size,
    }


def _statistics_json(matrix: ImportanceMatrix) -> list[dict[str, Any]]:
    from qexport.evidence.imatrix_sums import statistics

    return [
        {
            "tensor": s.name,
            "total": s.total,
            "mean": s.mean,
            "min": s.smallest,
            "max": s.largest,
            "active": s.active,
            "columns": s.columns,
            "entropy": s.entropy,
            "outliers": s.outliers,
            "cosine_to_previous_layer": s.similarity,
            "unseen_experts": s.unseen[0],
            "experts": s.unseen[1],
        }
        for s in statistics(matrix)
    ]


def _show_statistics(output: Output, matrix: ImportanceMatrix) -> None:
    """The columns of llama-imatrix's --show-statistics, and experts without data."""
    from qexport.evidence.imatrix_sums import statistics

    found = statistics(matrix)
    if not found:
        raise InputError(f"{matrix.label} has no entries")
    rows = [
        [
            s.name.removesuffix(".weight"),
            f"{s.total:.4g}",
            f"{s.smallest:.3g}",
            f"{s.largest:.4g}",
            f"{s.mean:.4g}",
            f"{100 * s.active:.1f}%",
            str(s.columns),
            f"{s.entropy:.2f}",
            f"{100 * s.entropy / math.log2(s.columns):.0f}%" if s.columns > 1 else "-",
            f"{100 * s.outliers:.1f}%",
            "-" if s.similarity is None else f"{s.similarity:.3f}",
            f"{s.unseen[0]}/{s.unseen[1]}" if s.unseen[1] > 1 else "-",
        ]
        for s in found
    ]
    columns = (
        "tensor",
        "sum",
        "min",
        "max",
        "mean",
        "active",
        "N",
        "entropy",
        "of max",
        "ZD",
        "cos prev",
        "unseen",
    )
    output.table(columns, rows, title=f"{matrix.label}: {', '.join(matrix.datasets) or 'no data set named'}")
