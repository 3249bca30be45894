"""``qexport demo``: the main job, end to end, on the tiny model inside the package."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass
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
    from collections.abc import Callable, Iterator, Sequence

    from qexport.progress import Progress
    from qexport.receipt.verification import Verification
    from qexport.recipe.recipe import AskedArtifact
    from qexport.run.outcome import Outcome


_TYPES = ("Q4_K_M", "Q8_0")
# In the demo model's world (tools/demo_corpus.py): it knows stories, capitals, small functions.
_PROMPTS = (
    "Tell me a story about a fox.",
    "What is the capital of Japan?",
    "Write a Python function that adds two numbers.",
)


# What would look odd without a word.
_ON_NVFP4 = """\
  NVFP4 is the largest file here: it stores the MLP alone in 4 bits, which is
  less than half of so small a model and two thirds of a 27B; embeddings and
  attention stay in bf16, and nothing was calibrated."""
_MERGED = "Demo-Tuned"
_MADE = ("GGUF", "MLX-6bit", "MLX-6bit-MTP", "FP8", "NVFP4A16", "head")
# What it is asked to write so that its head can be tuned: stories, the longest that it knows.
_ANIMALS = ("fox", "rabbit", "bear", "cat", "dog", "duck", "horse", "mouse")
_NAMES = ("Mia", "Tom", "Lily", "Ben", "Anna", "Max", "Lucy", "Sam", "Nora", "Leo", "Emma", "Jack")
_OWN_TOKENS = 16384
_TUNED = TuneOptions(TrainOptions(steps=40), chunk=256)
_MARK = ".qexport-demo"
_BEGUN = "Folders of these names are removed by `qexport demo --overwrite`."


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
    by the runtimes that its users have. In the end all of them answer the same questions, and the model, too.

    What an earlier demo has made and proven in the folder is not made again, but with --overwrite.

    \b
    Example:
      qexport demo -o demo-out
      qexport demo -o demo-out --tune-head
    """
    from qexport.formats.gguf.file_types import file_type

    try:
        from qexport.demo import merge  # noqa: F401 the steps need it
    except ImportError as error:
        raise EnvironmentProblem(
            f"the demo merges with transformers, which is not installed ({error.name})",
            hint="pip install 'qexport[all]'",
        ) from error
    for name in types:
        file_type(name)  # a type that does not exist is said before anything is made
    story = _Story(_Demo(as_json=as_json), out or Path("demo-out"), types, tune_head, threads)
    story.output.kept = _prepare(story, overwrite=overwrite)
    for step in _STEPS:
        step(story)
    story.output.next("inspect", "YOUR-MERGED-MODEL")


class _Demo(Output):
    """Numbers its titles, and has one for what comes after writing.

    Attributes:
        kept: what an earlier demo has made is gone on with.
    """

    kept = False
    _count = 0

    def step(self, title: str) -> None:
        """The next part of the story begins."""
        self._count += 1
        self.title(f"{self._count}. {title}")

    @contextmanager
    def phase(self, phase: Phase, total: int) -> Iterator[Progress]:
        if phase is Phase.VERIFYING and total:
            self.step("Proven by llama.cpp, mlx-lm and transformers, and measured against the source")
        with super().phase(phase, total) as progress:
            yield progress


@dataclass
class _Story:
    """What the steps of the demo share; ``outcome`` is there once everything was exported."""

    output: _Demo
    folder: Path
    types: tuple[str, ...]
    tune_head: bool
    threads: int | None
    outcome: Outcome | None = None

    @property
    def merged(self) -> Path:
        """The model that was fine-tuned and merged."""
        return self.folder / _MERGED


def _merge(story: _Story) -> None:
    from qexport.demo.merge import lora_like_merge

    if story.output.kept:
        story.output.step(f"Merged by an earlier demo (--overwrite begins anew): {story.merged}")
        return
    story.output.step(
        f"Merging a LoRA-like change into the demo model, as transformers saves it: {story.merged}"
    )
    lora_like_merge(MODEL, story.merged, style="declared")
    replace_file(story.folder / _MARK, _mark().encode())


def _look(story: _Story) -> None:
    from qexport.cli._report import say_findings
    from qexport.recipe.choice import ModelChoice
    from qexport.run.model import examine

    story.output.step("What is wrong with it")
    lost = examine(ModelChoice(str(story.merged)), download=False)
    say_findings(story.output, lost, details=not story.output.kept)


def _export(story: _Story) -> None:
    from qexport.receipt.state import problem
    from qexport.recipe.choice import ModelChoice
    from qexport.recipe.recipe import HeadTuning, Recipe, RecipeModel
    from qexport.run.job import run
    from qexport.run.local import Local

    given = "tuned to the merged trunk" if story.tune_head else "grafted"
    story.output.step(f"The base's MTP head {given}; every format from one read")
    tuning = HeadTuning(_own_text(story), options=_TUNED) if story.tune_head else None
    choice = ModelChoice(str(story.merged), mtp="graft", mtp_from=str(MODEL))
    recipe = Recipe((RecipeModel("model", choice, tuning=tuning),), _artifacts(story.types))
    local = Local(out=story.folder, threads=story.threads, report=True)
    story.outcome = run(recipe, local, story.output)
    if kind := problem(result.state for result in story.outcome.artifacts if not result.attached):
        assert story.outcome.report is not None
        raise kind("the demo was not proven as a whole", hint=f"{story.outcome.report.html} says what.")


def _own_text(story: _Story) -> Path:
    """What the merged model writes when it is asked for stories."""
    from qexport.recipe.choice import ModelChoice
    from qexport.run.own_text import TextRequest, own_text

    merged = story.merged
    asked = [f"Tell me a story about a {animal} named {name}." for animal in _ANIMALS for name in _NAMES]
    lines = [json.dumps({"messages": [{"role": "user", "content": words}]}) for words in asked]
    prompts, written = (merged.with_name(f"{merged.name}-{name}.jsonl") for name in ("asked", "own"))
    if story.output.kept and written.is_file():
        return written
    replace_file(prompts, "\n".join(lines).encode())
    how = TextRequest(
        written, prompts, tokens=_OWN_TOKENS, answer=160, parallel=16, threads=story.threads, overwrite=True
    )
    own_text(ModelChoice(str(merged), mtp="drop"), how, story.output)
    return written


def _show_head(story: _Story) -> None:
    """What tuning it came to, where it was asked for."""
    from qexport.cli.mtp import show_tuned
    from qexport.headtune.folder import RECEIPT

    if story.tune_head:
        head = story.folder / f"{_MERGED}-head"
        show_tuned(story.output, json.loads((head / RECEIPT).read_bytes()), head)


def _compare(story: _Story) -> None:
    """The same questions, answered by the source and by everything that was made of it."""
    from qexport.demo.answers import source_answers
    from qexport.report.answers import asked
    from qexport.report.gather import gather
    from qexport.verification.options import VerifyOptions

    assert story.outcome is not None
    output = story.output
    folders = [folder for model in story.outcome.models for folder in model.folders]
    if not folders:
        return
    output.step("The same questions, answered by the source and by every format")
    sources = source_answers(story.merged, _PROMPTS, VerifyOptions().n_predict)
    made = gather(folders).models[0]
    for question in asked(made.measured, sources):
        output.say()
        output.title(f"  {question.prompt}")
        for answer in question.answers:
            output.say(f"  {', '.join(answer.who)}:")
            output.say(_set_in(answer.plain("*")))
    pictures: dict[str, list[str]] = {}
    for artifact in made.measured:
        if artifact.verification is not None:
            for shown, text in _seen(artifact.verification):
                pictures.setdefault(f"Shown {shown}: {text}", []).append(artifact.title)
    for words, who in pictures.items():
        output.say(f"\n  {words}\n  {', '.join(who)}")
    output.say(f"\n  *Words* that the source does not say there stand between asterisks.\n\n{_ON_NVFP4}\n")


_STEPS: tuple[Callable[[_Story], None], ...] = (_merge, _look, _export, _show_head, _compare)
"""The story, in its order: each step says its own title."""


def _set_in(text: str) -> str:
    """Lines of at most 80 columns, indented; those of code stay as they are."""
    lines = [textwrap.fill(line, 74, replace_whitespace=False) for line in text.splitlines()]
    return textwrap.indent("\n".join(lines), "      ")


def _prepare(story: _Story, *, overwrite: bool) -> bool:
    """Make room; whether what an earlier demo left there is gone on with."""
    folder = story.folder
    mark = folder / _MARK
    ours = mark.is_file() and not mark.is_symlink()
    if ours and not overwrite and mark.read_text(errors="replace") == _mark() and story.merged.is_dir():
        Sources(given=(MODEL,)).refuse(folder)
        return True
    if os.path.lexists(folder) and not (overwrite or ours):
        raise UsageProblem(f"{folder} is already there", hint="Add --overwrite, or choose another --out.")
    _clear(folder, [story.merged, *(folder / f"{_MERGED}-{name}" for name in _MADE)])
    return False


def _mark() -> str:
    """Of the merge of this demo's model: an older one is not gone on with."""
    digest = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    return f"{_BEGUN}\nmerged from {digest}\n"


def _seen(report: Verification) -> list[tuple[str, str]]:
    """The pictures that were shown, with the answers; the source's own where it would choose every token."""
    from qexport.receipt.verification import Check
    from qexport.verification.sight import PICTURES

    found = report.finding(Check.IMAGE_TEXT)
    answers = found.data.get("answers", ()) if found is not None else ()
    same = ", as its source does" if found is not None and found.data.get("exact") == 1 else ""
    return [(str(shown), f'"{text.strip()}"{same}') for shown, text in zip(PICTURES, answers, strict=False)]


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
    replace_file(folder / _MARK, f"{_BEGUN}\n".encode())


def _artifacts(types: tuple[str, ...]) -> tuple[AskedArtifact, ...]:
    """Every format that a runtime can prove here: MLX has no wheels for some platforms."""
    from qexport.recipe.recipe import artifacts_of
    from qexport.verification.options import VerifyOptions

    mlx = () if find_spec("mlx_lm") is None else (MlxOptions(bits=6),)
    # NVFP4 in the layout that transformers reads; ModelOpt's, the default of `qexport nvfp4`, needs vLLM.
    nvfp4 = Nvfp4Options(layout="compressed-tensors")
    formats = (GgufOptions(types), *mlx, Fp8Options(), nvfp4)
    return artifacts_of(formats, verify=VerifyOptions(prompts=_PROMPTS))
