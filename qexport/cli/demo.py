"""``qexport demo``: the main job, end to end, on the tiny model inside the package."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qexport.cli._options import JSON, OUT, OVERWRITE, THREADS
from qexport.cli._output import Output
from qexport.demo import MODEL
from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.export.disk import make_folder
from qexport.export.files import replace_file
from qexport.export.sources import Sources
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.pipeline.export import Target


_TYPES = ("Q4_K_M", "Q8_0")
# In the demo model's world (tools/demo_corpus.py): it knows stories, capitals, small functions.
_PROMPTS = (
    "Tell me a story about a fox.",
    "What is the capital of Japan?",
    "Write a Python function that adds two numbers.",
)


_MADE = ("GGUF", "MLX-6bit", "MLX-6bit-MTP", "FP8", "NVFP4A16")
_MARK = ".qexport-demo"
_MEASURED = 2048  # held-out tokens


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
    MTP head), inspected, given the head back, written as GGUF, MLX, FP8 and NVFP4 from one read, and proven
    by the runtimes that its users have.

    \b
    Example:
      qexport demo -o demo-out
    """
    from qexport.cli._report import say_findings, say_plans, show_results
    from qexport.formats.gguf.file_types import file_type
    from qexport.pipeline import export
    from qexport.pipeline.model import ModelChoice, examine
    from qexport.receipt.state import problem
    from qexport.report.write import write_report

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
    merged = folder / "Demo-Tuned"
    if os.path.lexists(folder) and not overwrite:
        raise UsageProblem(f"{folder} is already there", hint="Add --overwrite, or choose another --out.")
    _clear(folder, [merged, *(folder / f"Demo-Tuned-{name}" for name in _MADE)])

    output.title(f"1. Merging a LoRA-like change into the demo model, as transformers saves it: {merged}")
    lora_like_merge(MODEL, merged, style="declared")

    output.title("2. What is wrong with it")
    lost = examine(ModelChoice(str(merged)), download=False)
    say_findings(output, lost, details=True)

    output.title("3. The base's MTP head grafted; every format from one read")
    choice = ModelChoice(str(merged), mtp="graft", mtp_from=str(MODEL))
    diagnosis = examine(choice, download=False)
    say_findings(output, diagnosis)
    items = export.plan(_targets(types, folder), diagnosis)
    plans = [item.plan for item in items]
    say_plans(output, items)
    export.ready_kernels(plans, output.say)
    with output.progress(sum(plan.size for plan in plans), "writing") as progress:
        written = export.write(
            items, diagnosis, home=folder, threads=threads, progress=progress, say=output.say
        )

    output.title("4. Proven by llama.cpp, mlx-lm and transformers, and measured against the source")
    results, receipts = export.prove(written, diagnosis, output.say, measure=_MEASURED)
    for result in results:
        if result.report is not None and not as_json:
            for text in result.report.texts:
                output.say(f"  {result.plan.label} wrote: {' '.join(text.split())}")
    show_results(output, results, receipts)
    report = write_report(list(dict.fromkeys(item.folder for item in results)), folder)
    output.text(f"Report: {report.html}")
    if kind := problem(result.state for result in results):
        raise kind("the demo was not proven as a whole", hint=f"{report.html} says what.")


def _clear(folder: Path, made: Sequence[Path]) -> None:
    """Remove what an earlier demo has made in ``folder``; anything else of these names is somebody's."""
    sources = Sources(given=(MODEL,))
    sources.refuse(folder)
    there = [each for each in made if os.path.lexists(each)]
    for each in there:
        sources.refuse_removal(each)
        if each.is_symlink() or not each.is_dir() or not (folder / _MARK).is_file():
            raise UsageProblem(
                f"{each.name} was not made by the demo", hint="Move it away, or choose another --out."
            )
    try:
        for each in there:
            shutil.rmtree(each)
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder.name} cannot be cleared: {error.strerror or error}", hint="Choose another --out."
        ) from error
    make_folder(folder)
    replace_file(folder / _MARK, b"Folders of these names are removed by `qexport demo --overwrite`.\n")


def _targets(types: tuple[str, ...], folder: Path) -> list[Target]:
    """Every format that a runtime can prove here: MLX has no wheels for some platforms."""
    from qexport.pipeline.folders import FolderTarget
    from qexport.pipeline.gguf import GgufTarget
    from qexport.verify.options import VerifyOptions

    asked = VerifyOptions(prompts=_PROMPTS)
    targets: list[Target] = [GgufTarget(types, folder / "Demo-Tuned-GGUF", verify=asked)]
    if find_spec("mlx_lm") is not None:
        targets.append(FolderTarget(MlxOptions(bits=6), folder / "Demo-Tuned-MLX-6bit", asked))
    targets.append(FolderTarget(Fp8Options(), folder / "Demo-Tuned-FP8", asked))
    # In the layout that transformers reads; ModelOpt's, the default of `qexport nvfp4`, needs vLLM.
    nvfp4 = Nvfp4Options(layout="compressed-tensors")
    targets.append(FolderTarget(nvfp4, folder / "Demo-Tuned-NVFP4A16", asked))
    return targets
