"""``qexport imatrix``: an importance matrix, the model's layers in memory one after the other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._export import calibration_from, chosen, model_choice, source_words
from qexport.cli._options import (
    CORPUS,
    FILE,
    JSON,
    OVERWRITE,
    THREADS,
    calibration_options,
    model_argument,
    tower_options,
)
from qexport.cli._output import Output
from qexport.errors import InputError
from qexport.sizes import counted, size_text

if TYPE_CHECKING:
    from qexport.evidence.imatrix_file import ImportanceMatrix


_COLUMNS = (
    *("tensor", "sum", "min", "max", "mean", "active", "N", "entropy"),
    *("of max", "ZD", "cos prev", "unseen"),
)
_KEYS = {
    "name": "tensor",
    "total": "total",
    "mean": "mean",
    "smallest": "min",
    "largest": "max",
    "active": "active",
    "columns": "columns",
    "entropy": "entropy",
    "outliers": "outliers",
    "similarity": "cosine_to_previous_layer",
}
"""Fields of the statistics to their keys in the document."""


@click.command("imatrix")
@model_argument
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write.  [default: NAME-imatrix.gguf_file here]",
)
@CORPUS
@click.option("--merge", type=FILE, multiple=True, help="A matrix that is added to the result. Repeatable.")
@tower_options
@calibration_options
@click.option("--show-statistics", is_flag=True, help="Print what the matrix says of each tensor.")
@click.option("--dry-run", is_flag=True, help="Tokenize and plan; collect and write nothing.")
@THREADS
@OVERWRITE
@JSON
def command(**given: Any) -> None:
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
    from qexport.evidence.imatrix_file import read_imatrix
    from qexport.evidence.options import StreamOptions
    from qexport.run.imatrix import collect_alone, matrix_job
    from qexport.run.model import examine

    output = Output(as_json=given["as_json"])
    model, choice = Path(given["model"]), model_choice(given)
    if model.is_file():
        matrix = read_imatrix(model)
        output.document({**_json(matrix), "statistics": _statistics_json(matrix)})
        _show_statistics(output, matrix)
        return
    diagnosis = examine(choice, download=False)
    output.diagnosed(diagnosis)
    how = calibration_from(given, given["corpus"], given["merge"])
    job = matrix_job(choice, diagnosis, how, StreamOptions(**chosen(StreamOptions, given)), given["out"])
    if given["dry_run"]:
        chunks, size = job.wanted.chunks, job.plan.size
        known = {"file": job.wanted.name, "bytes": size, "tokens": chunks.tokens}
        output.document({**known, **_json(job.expected)})
        output.text(
            f"{job.wanted.name}: {counted(len(job.expected.sums), 'tensor')} from {chunks.tokens} tokens "
            f"({chunks.dataset}), {size_text(size)}"
        )
        return
    made = collect_alone(job, output, overwrite=given["overwrite"])
    if made is None:
        return
    for note in made.notes:
        output.say(f"  {note}")
    written, values = made.written, made.matrix.values
    document = {
        "file": written.name,
        "bytes": written.size,
        "sha256": written.sha256,
        **(made.matrix.facts or {}),
    }
    if given["show_statistics"]:
        document["statistics"] = _statistics_json(values)
    notes = list(made.notes)
    output.document({**document, **_json(values), "notes": notes, "receipt": made.receipt.name})
    if given["show_statistics"]:
        _show_statistics(output, values)
    output.text(
        f"{job.wanted.out / written.name}: {counted(len(values.sums), 'tensor')}, {size_text(written.size)}"
    )
    output.text(f"Receipt: {made.receipt}")
    made_file = job.wanted.out / written.name
    output.next("gguf", *source_words(given), "-q", "standard", "--imatrix", made_file)


def _json(matrix: ImportanceMatrix) -> dict[str, Any]:
    return {
        "entries": len(matrix.sums),
        "datasets": list(matrix.datasets),
        "chunks": matrix.chunk_count,
        "chunk_size": matrix.chunk_size,
    }


def _statistics_json(matrix: ImportanceMatrix) -> list[dict[str, Any]]:
    from qexport.evidence.imatrix_sums import statistics

    found = []
    for each in statistics(matrix):
        row = {key: getattr(each, field) for field, key in _KEYS.items()}
        found.append({**row, "unseen_experts": each.unseen[0], "experts": each.unseen[1]})
    return found


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
    output.table(_COLUMNS, rows, title=f"{matrix.label}: {', '.join(matrix.datasets) or 'no data set named'}")
