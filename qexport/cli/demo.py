"""``qexport demo``: the main job, end to end, on the tiny model inside the package."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from qexport.cli._options import JSON, OUT, OVERWRITE, THREADS
from qexport.cli._output import Output
from qexport.cli._report import say_findings, say_plans, show_results
from qexport.demo import MODEL
from qexport.errors import EnvironmentProblem, UsageProblem, VerificationError
from qexport.formats.gguf.file_types import file_type
from qexport.pipeline import export
from qexport.pipeline.gguf import GgufTarget
from qexport.pipeline.model import ModelChoice, examine
from qexport.verify.run import VerifyOptions

__all__ = ["command"]

_TYPES = ("Q4_K_M", "Q8_0")
# In the demo model's world (qexport/demo/corpus.py): it knows stories, capitals, small functions.
_PROMPTS = (
    "Tell me a story about a fox.",
    "What is the capital of Japan?",
    "Write a Python function that adds two numbers.",
)


@click.command("demo")
@OUT
@click.option(
    "-q",
    "--quant",
    "types",
    multiple=True,
    default=_TYPES,
    show_default=True,
    metavar="TYPE",
    help="GGUF types to write.",
)
@THREADS
@OVERWRITE
@JSON
def command(
    out: Path | None, types: tuple[str, ...], threads: int | None, overwrite: bool, as_json: bool
) -> None:
    """Show everything on a model of a few million weights: it is merged as a fine-tune is (and so loses its
    MTP head), inspected, given the head back, written as GGUF from one read, and proven by llama.cpp.

    \b
    Example:
      qexport demo -o demo-out
    """
    try:
        from qexport.demo.merge import lora_like_merge
    except ImportError as error:
        raise EnvironmentProblem(
            f"the demo merges with transformers, which is not installed ({error.name})",
            hint="pip install 'qexport[all]'",
        ) from error
    output = Output(as_json=as_json)
    for name in types:
        file_type(name)  # a type that does not exist is said before anything is made
    folder = out or Path("demo-out")
    merged, artifacts = folder / "Demo-Tuned", folder / "Demo-Tuned-GGUF"
    if folder.exists() and not overwrite:
        raise UsageProblem(f"{folder} is already there", hint="Add --overwrite, or choose another --out.")
    for made in (merged, artifacts):
        shutil.rmtree(made, ignore_errors=True)

    output.title(f"1. Merging a LoRA-like change into the demo model, as transformers saves it: {merged}")
    lora_like_merge(MODEL, merged, style="declared")

    output.title("2. What is wrong with it")
    lost = examine(ModelChoice(str(merged)), download=False)
    say_findings(output, lost, details=True)

    output.title("3. The base's MTP head grafted; every type from one read")
    choice = ModelChoice(str(merged), mtp="graft", mtp_from=str(MODEL))
    target = GgufTarget(types, artifacts, verify=VerifyOptions(prompts=_PROMPTS))
    diagnosis = examine(choice, download=False)
    say_findings(output, diagnosis)
    items = export.plan([target], diagnosis)
    plans = [item.plan for item in items]
    say_plans(output, items)
    export.ready_kernels(plans, output.say)
    with output.progress(sum(plan.size for plan in plans), "writing") as progress:
        written = export.write(items, diagnosis, threads=threads, progress=progress)

    output.title("4. Proven by llama.cpp")
    results, receipts = export.prove(written, diagnosis, output.say)
    for result in results:
        if result.report is not None and not as_json:
            for text in result.report.texts:
                output.say(f"  {result.plan.label} wrote: {' '.join(text.split())}")
    show_results(output, results, receipts)
    if any(result.failed for result in results):
        raise VerificationError("the demo failed verification", hint=f"{receipts[0]} says why.")
