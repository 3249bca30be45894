"""``qexport demo``: the main job, end to end, on the tiny model inside the package."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qexport.cli._options import JSON, OUT, OVERWRITE, THREADS
from qexport.cli._output import Output
from qexport.demo import MODEL
from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.headtune.options import TrainOptions, TuneOptions
from qexport.onepass.disk import make_folder
from qexport.onepass.files import replace_file
from qexport.onepass.sources import Sources
from qexport.run.watcher import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qexport.progress import Progress
    from qexport.receipt.verification import Verification
    from qexport.recipe.recipe import AskedArtifact
    from qexport.run.target import Item


_TYPES = ("Q4_K_M", "Q8_0")
# In the demo model's world (tools/demo_corpus.py): it knows stories, capitals, small functions.
_PROMPTS = (
    "Tell me a story about a fox.",
    "What is the capital of Japan?",
    "Write a Python function that adds two numbers.",
)


_MADE = ("GGUF", "MLX-6bit", "MLX-6bit-MTP", "FP8", "NVFP4A16", "head")
# What it is asked to write so that its head can be tuned: stories, the longest that it knows.
_ANIMALS = ("fox", "rabbit", "bear", "cat", "dog", "duck", "horse", "mouse")
_NAMES = ("Mia", "Tom", "Lily", "Ben", "Anna", "Max", "Lucy", "Sam", "Nora", "Leo", "Emma", "Jack")
_OWN_TOKENS = 16384
_TUNED = TuneOptions(TrainOptions(steps=40), chunk=256)
_MARK = ".qexport-demo"


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
@click.option(
    "--tune-head",
    is_flag=True,
    help="Also have the merged model write text of its own and tune the head to it; it is taken if it is "
    "better.",
)
@THREADS
@OVERWRITE
@JSON
def command(
    out: Path | None,
    types: tuple[str, ...],
    tune_head: bool,
    threads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Show everything on a model of a few million weights: it is merged as a fine-tune is (and so loses its
    MTP head), inspected, given the head back, written as GGUF, MLX, FP8 and NVFP4 from one read, and proven
    by the runtimes that its users have.

    \b
    Example:
      qexport demo -o demo-out
      qexport demo -o demo-out --tune-head
    """
    from qexport.cli._report import say_findings
    from qexport.cli.mtp import show_tuned
    from qexport.formats.gguf.file_types import file_type
    from qexport.headtune.folder import RECEIPT
    from qexport.receipt.state import problem
    from qexport.recipe.choice import ModelChoice
    from qexport.recipe.recipe import HeadTuning, Recipe, RecipeModel
    from qexport.run.job import run
    from qexport.run.local import Local
    from qexport.run.model import examine

    try:
        from qexport.demo.merge import lora_like_merge
    except ImportError as error:
        raise EnvironmentProblem(
            f"the demo merges with transformers, which is not installed ({error.name})",
            hint="pip install 'qexport[all]'",
        ) from error
    output = _Demo(as_json=as_json)
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

    given = "tuned to the merged trunk" if tune_head else "grafted"
    output.title(f"3. The base's MTP head {given}; every format from one read")
    tuning = HeadTuning(_own_text(merged, threads, output), options=_TUNED) if tune_head else None
    choice = ModelChoice(str(merged), mtp="graft", mtp_from=str(MODEL))
    recipe = Recipe((RecipeModel("model", choice, tuning=tuning),), _artifacts(types))
    outcome = run(recipe, Local(out=folder, threads=threads, report=True), output)
    if kind := problem(result.state for result in outcome.artifacts if not result.attached):
        assert outcome.report is not None
        raise kind("the demo was not proven as a whole", hint=f"{outcome.report.html} says what.")
    if tune_head:
        head = folder / f"{merged.name}-head"
        show_tuned(output, json.loads((head / RECEIPT).read_bytes()), head)
    output.next("inspect", "YOUR-MERGED-MODEL")


def _own_text(merged: Path, threads: int | None, output: Output) -> Path:
    """What the merged model writes when it is asked for stories."""
    from qexport.recipe.choice import ModelChoice
    from qexport.run.own_text import TextRequest, own_text

    asked = [f"Tell me a story about a {animal} named {name}." for animal in _ANIMALS for name in _NAMES]
    lines = [json.dumps({"messages": [{"role": "user", "content": words}]}) for words in asked]
    prompts, written = (merged.with_name(f"{merged.name}-{name}.jsonl") for name in ("asked", "own"))
    replace_file(prompts, "\n".join(lines).encode())
    how = TextRequest(
        written, prompts, tokens=_OWN_TOKENS, answer=160, parallel=16, threads=threads, overwrite=True
    )
    own_text(ModelChoice(str(merged), mtp="drop"), how, output)
    return written


class _Demo(Output):
    """Has a title for what comes after writing, and shows what the artifacts wrote."""

    @contextmanager
    def phase(self, phase: Phase, total: int) -> Iterator[Progress]:
        if phase is Phase.VERIFYING:
            self.title("4. Proven by llama.cpp, mlx-lm and transformers, and measured against the source")
        with super().phase(phase, total) as progress:
            yield progress

    def made(self, items: Sequence[Item], receipts: Sequence[Path]) -> None:
        for item in items:
            if item.report is not None and not self.as_json:
                for text in item.report.texts:
                    self.say(f"  {item.plan.label} wrote: {' '.join(text.split())}")
                for picture, text in _seen(item.report):
                    self.say(f"  {item.plan.label} was shown {picture} and wrote: {text}")
        super().made(items, receipts)


def _seen(report: Verification) -> list[tuple[str, str]]:
    """The pictures that were shown, with the answers; the source's own where it would choose every token."""
    from qexport.receipt.verification import Check
    from qexport.verification.sight import PICTURES

    found = report.finding(Check.IMAGE_TEXT)
    answers = found.data.get("answers", ()) if found is not None else ()
    same = ", as its source does" if found is not None and found.data.get("exact") == 1 else ""
    return [(str(shown), f"{text.strip()}{same}") for shown, text in zip(PICTURES, answers, strict=False)]


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


def _artifacts(types: tuple[str, ...]) -> tuple[AskedArtifact, ...]:
    """Every format that a runtime can prove here: MLX has no wheels for some platforms."""
    from qexport.recipe.recipe import artifacts_of
    from qexport.verification.options import VerifyOptions

    mlx = () if find_spec("mlx_lm") is None else (MlxOptions(bits=6),)
    # NVFP4 in the layout that transformers reads; ModelOpt's, the default of `qexport nvfp4`, needs vLLM.
    nvfp4 = Nvfp4Options(layout="compressed-tensors")
    formats = (GgufOptions(types), *mlx, Fp8Options(), nvfp4)
    return artifacts_of(formats, verify=VerifyOptions(prompts=_PROMPTS))
