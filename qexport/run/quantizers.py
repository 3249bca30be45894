"""Libraries that quantize, run on the repaired checkpoint: what they alone can do, reached from here.

llm-compressor has recipes (W4A4, GPTQ, AWQ ...), ModelOpt configurations by name. Either works in a process
of its own, with the environment, the memory and the time that all foreign programs have (``children/``), on a
checkpoint that is written for it and removed; what comes of it is adopted (:mod:`qexport.run.adopt`): given
head and tower, proven, and given a receipt that names the library.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qexport.children.failure import Failure, RuntimeFailure
from qexport.children.process import ChildProcess, engine_command
from qexport.children.redact import folders_of
from qexport.errors import EnvironmentProblem, InputError, UsageProblem
from qexport.evidence.corpus import builtin_corpus, read_corpus
from qexport.evidence.machine import available_memory
from qexport.evidence.tokens import tokenize
from qexport.formats.merged.plan import plan_merged
from qexport.onepass.disk import free_bytes
from qexport.onepass.execute import execute
from qexport.onepass.files import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qexport.doctor.diagnose import Diagnosis


LLM_COMPRESSOR, MODELOPT = "llm-compressor", "modelopt"
_INSTALL = {
    LLM_COMPRESSOR: "pip install llmcompressor, or name a Python that has it with --engine-python PATH",
    MODELOPT: "pip install nvidia-modelopt, or name a Python that has it with --engine-python PATH",
}
_ASKED = {LLM_COMPRESSOR: "--recipe FILE", MODELOPT: "--config NAME"}


@dataclass(frozen=True)
class Quantizer:
    """A library and what it is asked for.

    Attributes:
        engine: ``llm-compressor`` or ``modelopt``.
        recipe: a file of llm-compressor's.
        config: a name of ``modelopt.torch.quantization``, such as ``NVFP4_DEFAULT_CFG``.
        python: the Python that has it; ours if not given.
        corpus: text that goes through the model; the built-in one if not given.
        tokens, chunk: how much of it.
        time_limit: seconds that it may take.

    Raises:
        UsageProblem: what the engine wants is missing, or belongs to the other.
    """

    engine: Literal["llm-compressor", "modelopt"]
    recipe: Path | None = None
    config: str | None = None
    python: Path | None = None
    corpus: Path | None = None
    tokens: int = 16384
    chunk: int = 512
    time_limit: float = 24 * 3600.0

    def __post_init__(self) -> None:
        given = {LLM_COMPRESSOR: self.recipe, MODELOPT: self.config}
        if given.pop(self.engine) is None or any(value is not None for value in given.values()):
            raise UsageProblem(
                f"--engine {self.engine} is told what to do by {_ASKED[self.engine]}, and by nothing else"
            )

    @property
    def told(self) -> str:
        """What it does, in a word that travels: no path."""
        return f"{self.engine} {self.config or (self.recipe.name if self.recipe else '')}"


@contextmanager
def quantized_by(
    wanted: Quantizer,
    diagnosis: Diagnosis,
    *,
    threads: int | None = None,
    say: Callable[[str], None] = silent,
) -> Iterator[tuple[Path, Path, str]]:
    """The quantized folder, the repaired checkpoint, and the library's name and version; both go with the
    context.

    Raises:
        EnvironmentProblem: no room, or the library is not there; the next step is in its hint.
        InputError: the library refuses the model or what it is asked for.
    """
    repaired = diagnosis.repaired
    plan = plan_merged(repaired)
    place = Path(tempfile.gettempdir())
    free = free_bytes(place)
    if 2 * plan.size > free:
        raise EnvironmentProblem(
            f"the repaired checkpoint and what comes of it take up to {2 * plan.size:,} bytes, but only "
            f"{free:,} are free for temporary files",
            hint="TMPDIR names another folder for them.",
        )
    corpus = builtin_corpus() if wanted.corpus is None else read_corpus(wanted.corpus)
    ids = tokenize(corpus, repaired.files, tokens=wanted.tokens, chunk=wanted.chunk, model=repaired.label).ids
    with tempfile.TemporaryDirectory(prefix="qexport-engine-", dir=place) as folder:
        name = repaired.label.rsplit("/", 1)[-1]
        whole, made = Path(folder) / "repaired" / name, Path(folder) / "quantized" / name
        say(f"{name}: writing the repaired checkpoint for {wanted.engine}")
        execute([plan], whole, threads=threads)
        say(f"{name}: {wanted.told}, {ids.size} tokens of {corpus.label}")
        process = ChildProcess(
            engine_command("engine_quantizer.py", wanted.python),
            what=wanted.engine,
            time_limit=wanted.time_limit,
            memory_limit=available_memory() * 19 // 20,
            request={
                "engine": wanted.engine,
                "model": str(whole),
                "out": str(made),
                "recipe": None if wanted.recipe is None else str(wanted.recipe.resolve()),
                "config": wanted.config,
                "ids": ids.tolist(),
            },
            secrets=folders_of(whole, made, *([wanted.python] if wanted.python else [])),
        )
        try:
            process.ready(_INSTALL[wanted.engine])
            version = str(process.ask("quantize"))
        except RuntimeFailure as failure:
            words = f"{failure.message}: {failure.log[-1]}" if failure.log else failure.message
            kind = EnvironmentProblem if failure.kind in (Failure.LACKING, Failure.TIMEOUT) else InputError
            gpu = any(word in words for word in ("CUDA", "accelerator"))
            hint = "does this on a GPU alone." if gpu else "says so; its documentation has what it takes."
            raise kind(words, hint=f"{wanted.engine} {hint}") from failure
        finally:
            process.kill()
        yield made, whole, f"{wanted.told} ({version})"
