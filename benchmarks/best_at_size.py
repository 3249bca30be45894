"""How much closer to the source a file of the same size can be: the table of docs/quality.md for a model.

    python benchmarks/best_at_size.py MODEL --heldout HELD_OUT.txt [--corpus CALIBRATION.txt] [--imatrix FILE]
        [--like gguf:Q4_K_M --like mlx:4bit --like nvfp4:mlp:compressed-tensors ...]
        [--tokens 32768] [--measured 16384] [--chunk 512] [--feedback-tokens 32768]

The corpus is calibrated on, and sent along for error feedback; a matrix that was collected from it with
sensitivities saves collecting one. For each size four ways: the plain type with importance, alone and with
error feedback; types chosen for its size by what errors cost, alone and with error feedback, which is the
best. All are measured in one engine against the source, float32, over one held-out text of which the second
half of each chunk counts; ± is the standard error. A ratio's error is that of the difference, position by
position. Sizes are within 0.5 % of the plain one's, or the row says so. What this version cannot do is shown
as "not run", never left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.errors import QexportError
from qexport.evidence.corpus import builtin_corpus, read_corpus
from qexport.evidence.imatrix_file import read_imatrix
from qexport.evidence.options import StreamOptions
from qexport.evidence.tokens import tokenize
from qexport.formats.opening import open_artifact
from qexport.formats.registry import FORMATS
from qexport.onepass.as_stored import as_stored
from qexport.onepass.execute import execute
from qexport.receipt.text import percent, with_error
from qexport.recipe.choice import ModelChoice
from qexport.recipe.recipe import Calibration
from qexport.run.allocation import settle
from qexport.run.feedback import FeedbackText, feedback_text
from qexport.run.matrix import collect, want
from qexport.run.model import examine
from qexport.run.target import Target
from qexport.run.watcher import Watcher
from qexport.verification.comparison import Comparison, compare
from qexport.verification.divergence import gained
from qexport.verification.text_run import TextRun, run_text

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.formats.plan import ArtifactPlan

SIZES = (
    *("gguf:Q3_K_M", "gguf:Q4_K_M", "gguf:Q5_K_M", "gguf:Q6_K"),
    *("mlx:4bit", "mlx:6bit"),
    *("nvfp4:nvidia", "nvfp4:nvidia:compressed-tensors", "nvfp4:mlp"),
)
ALIKE = 0.005  # sizes that count as equal
COLUMNS = ("size of", "way", "MB", "KL divergence", "of plain", "predicted/measured", "flips", "acceptance")


@dataclass(frozen=True)
class Row:
    way: str
    size: int
    found: Comparison
    predicted: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, help="the built-in one by default")
    parser.add_argument("--imatrix", type=Path, help="with sensitivities, of the corpus")
    parser.add_argument(
        "--like", action="append", help=f"FORMAT:TYPE[:LAYOUT], repeatable; {' '.join(SIZES)}"
    )
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--measured", type=int, default=16384)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--feedback-tokens", type=int, default=32768)
    parser.add_argument("--without-feedback", action="store_true")
    args = parser.parse_args()
    diagnosis = examine(ModelChoice(str(args.model)), download=False)
    view = diagnosis.repaired.view()
    matrix = read_imatrix(args.imatrix) if args.imatrix else collected(args, diagnosis)
    text = read_corpus(args.heldout)
    ids = tokenize(text, view.files, tokens=args.measured, chunk=args.chunk, model=view.label).ids
    print(f"{view.label}: {ids.size} tokens of {args.heldout.name}, calibrated on {matrix.datasets}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    how = Calibration(args.corpus, feedback_text=args.corpus, feedback_tokens=args.feedback_tokens)
    fed = None if args.without_feedback else feedback_text(how, StreamOptions(), view, None)
    with run_text(view, ids) as source:
        for like in args.like or SIZES:
            show(like, rows(like, diagnosis, matrix, source, fed))


def collected(args: argparse.Namespace, diagnosis: Diagnosis) -> ImportanceMatrix:
    how = Calibration(args.corpus, args.tokens, sensitivity=True)
    view, label = diagnosis.repaired.view(), (args.corpus or Path(builtin_corpus().label)).stem
    return collect(want(how, StreamOptions(), view, Path(), label), view, Watcher()).values


def rows(
    like: str, diagnosis: Diagnosis, matrix: ImportanceMatrix, source: TextRun, fed: FeedbackText | None
) -> Iterator[Row | str]:
    """The ways of making a file of this size; where one cannot be gone, why."""
    word, name, *layout = like.split(":")
    kind, view = FORMATS[word], diagnosis.repaired.view()
    if kind.sizing is None or kind.matrix is None:
        yield f"not run: {word} cannot be made for a size"
        return
    given: dict[str, Any] = {kind.matrix: matrix, **({"layout": layout[0]} if layout else {})}
    try:
        aimed = kind.options(like=name, **given)
        plain = kind.sizing.plain(aimed, name)
        (target,) = settle([Target(aimed, Path("artifact"))], diagnosis, Watcher())
        ways = (
            ("plain", plain, None),
            ("allocated", target.options, target.options.types_from.predicted.kld),
        )
        for way, options, predicted in ways:
            plans = kind.plan(diagnosis, options)
            found = compare(source, as_stored(view, plans), source.tokens)
            yield Row(way, plans[0].size, found, predicted)
            if fed is not None:
                plans = kind.plan(diagnosis, replace(options, feedback=True))
                found = written(plans, diagnosis, source, fed)
                yield Row("best" if predicted else "plain, feedback", plans[0].size, found)
        if fed is None:
            yield "not run: with feedback"
    except QexportError as error:
        yield f"not run: {error.message}"


def written(
    plans: Sequence[ArtifactPlan], diagnosis: Diagnosis, source: TextRun, fed: FeedbackText
) -> Comparison:
    """Of files that are really written: what feedback needs to know comes along with the pass."""
    view, begun = diagnosis.repaired.view(), time.process_time()
    with tempfile.TemporaryDirectory() as name, closing(fed.products(view)) as products:
        folder = Path(name) / "artifact"
        folders = [folder, *(folder.with_name("artifact-MTP") for _ in plans[1:])]
        execute(plans, folders, products=products)
        print(f"<!-- written in {time.process_time() - begun:.1f} s of processors -->", flush=True)
        path = folder / plans[0].files[0].name if plans[0].kind == "gguf" else folder
        artifact = open_artifact(path, like=view).view()
        return compare(source, artifact, source.tokens)


def show(like: str, every: Iterator[Row | str]) -> None:
    plain: Row | None = None
    for row in every:
        if isinstance(row, str):
            print(f"| {like} | {row} |{' |' * (len(COLUMNS) - 2)}", flush=True)
            continue
        plain, trunk = plain or row, row.found.trunk
        ratio = ""
        if row is not plain:
            error = (gained(plain.found.trunk, trunk).error or 0) / plain.found.trunk.mean
            ratio = f"{trunk.mean / plain.found.trunk.mean:.2f} ± {error:.2f}"
        off = row.size / plain.size - 1
        cells = (
            like,
            row.way,
            f"{row.size / 1e6:.3f} ({off:+.2%}{'' if abs(off) <= ALIKE else ', not equal'})",
            with_error(trunk.kld.estimate),
            ratio,
            f"{row.predicted / trunk.mean:.2f}" if row.predicted else "",
            with_error(row.found.flips.estimate, share=True) if row.found.flips else "",
            f"{percent(row.found.score.acceptance)} ({percent(row.found.source_score.acceptance)})"
            if row.found.score and row.found.source_score
            else "",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
