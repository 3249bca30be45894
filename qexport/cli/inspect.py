"""``qexport inspect``: what a checkpoint is, what is wrong with it, what each format would weigh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qexport.cli._export import model_choice, source_words
from qexport.cli._options import FILE, JSON, THREADS, model_argument, tower_options
from qexport.cli._output import Output
from qexport.errors import InputError, UsageProblem
from qexport.sizes import count_text, size_text

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.doctor.explain import Explanation
    from qexport.doctor.finding import Finding
    from qexport.formats.weights import FormatSize
    from qexport.run.curves import Curve


@click.command("inspect")
@model_argument
@tower_options
@click.option(
    "--curve",
    is_flag=True,
    help="Show, too, what each format is predicted to lose at each size. Reads the weights, and takes an "
    "importance matrix with sensitivities.",
)
@click.option(
    "--imatrix",
    type=FILE,
    metavar="FILE",
    help="The matrix for --curve, as `qexport imatrix --sensitivity` collects it.",
)
@THREADS
@JSON
def command(**given: Any) -> None:
    """Explain MODEL without changing or downloading its weights: headers and small files are enough.

    Each finding says whom it would hurt and with which error, and what qexport does about it.

    \b
    Examples:
      qexport inspect ./merged
      qexport inspect org/model --json
      qexport inspect ./merged --imatrix mine.gguf_file --curve
    """
    from qexport.doctor.explain import explain
    from qexport.formats.weights import weights_of
    from qexport.run.model import examine

    output = Output(as_json=given["as_json"])
    if given["curve"] != (given["imatrix"] is not None):
        raise UsageProblem(
            "--curve and --imatrix go together", hint="qexport imatrix MODEL --sensitivity makes a matrix."
        )
    diagnosis = examine(model_choice(given), download=False)
    explanation = explain(diagnosis)
    weights: list[FormatSize] = []
    problem: str | None = None
    try:
        weights, problem = weights_of(diagnosis)
    except InputError as error:
        problem = error.message
    curves = _curves(output, diagnosis, given) if given["curve"] else []
    output.document(
        {
            **explanation.to_json(),
            "formats": [
                {"format": w.format, "bytes": w.nbytes, "bits_per_weight": round(w.bits, 3)} for w in weights
            ],
            "formats_problem": problem,
            **({"curves": [curve.to_json() for curve in curves]} if given["curve"] else {}),
        }
    )
    if output.as_json:
        return
    _what_it_is(output, explanation)
    for finding in explanation.findings:
        _show_finding(output, finding)
    if not explanation.findings:
        output.text("\nNothing is wrong with it.")
    if weights:
        rows = [[w.format, size_text(w.nbytes), f"{w.bits:.2f}"] for w in weights]
        output.text("")
        output.table(("format", "size", "bits/weight"), rows)
    if problem and not any(f.severity == "error" for f in explanation.findings):
        output.text(f"No GGUF sizes: {problem}")
    if curves:
        _show_curves(output, curves, diagnosis)
    if not any(finding.severity == "error" for finding in explanation.findings):
        output.next("gguf", *source_words(given), "-q", "standard", "--imatrix")


def _curves(output: Output, diagnosis: Diagnosis, given: dict[str, Any]) -> list[Curve]:
    from qexport.evidence.imatrix_file import read_imatrix
    from qexport.run.curves import curves_of

    return curves_of(diagnosis, read_imatrix(given["imatrix"]), output, given["threads"])


def _show_curves(output: Output, curves: list[Curve], diagnosis: Diagnosis) -> None:
    """For round divergences, the smallest file of each format."""
    from qexport.receipt.text import nats
    from qexport.run.allocation import ROUTED, routes
    from qexport.run.curves import marks

    rows = [
        [nats(mark), *(size_text(found.nbytes) if (found := curve.at(mark)) else "-" for curve in curves)]
        for mark in marks(curves)
    ]
    output.text("\nThe smallest files that are predicted to diverge by no more, types chosen for it:")
    output.table(("nats per token", *(curve.format for curve in curves)), rows)
    if routes(diagnosis):
        output.text(f"  {ROUTED}")


def _what_it_is(output: Output, e: Explanation) -> None:
    p = e.parameters
    layers = ", ".join(f"{count} {kind}" for kind, count in e.layers.items())
    parts = f"{count_text(p.total)} values: trunk {count_text(p.trunk)}"
    if p.active != p.trunk:
        parts += f" ({count_text(p.active)} active)"
    parts += f", MTP {count_text(p.mtp)}" if p.mtp else ", no MTP head" if e.mtp == 0 else ""
    parts += f", vision {count_text(p.vision)}" if p.vision else ""
    output.text(f"{e.label}: {e.family} ({e.architecture})")
    output.text(f"  layers      {layers}")
    output.text(f"  weights     {parts}")
    if e.experts:
        output.text(f"  experts     {e.experts}, {e.experts_per_token} per token")
    output.text(f"  stored as   {', '.join(f'{count_text(n)} {kind}' for kind, n in e.dtypes.items())}")
    output.text(f"  files       {len(e.files)} ({size_text(sum(e.files.values()))})")
    output.text(f"  vocabulary  {e.vocabulary}{', tied to the output' if e.tied else ''}; {e.tokenizer}")
    output.text(f"  context     {e.context_length}")
    output.text(f"  template    {', '.join(e.chat_template) or 'none'}")


def _show_finding(output: Output, finding: Finding) -> None:
    marks = {"error": "ERROR", "repaired": "repaired", "note": "note"}
    output.text(f"\n[{marks[finding.severity]}] {finding.id}: {finding.what}")
    for breaks in finding.breaks:
        output.text(f"    breaks {breaks.reader}: {breaks.message}")
    if finding.repair:
        output.text(f"    {'ways out' if finding.severity == 'error' else 'repair'}: {finding.repair}")
    if finding.reference:
        output.text(f"    see {finding.reference}")
