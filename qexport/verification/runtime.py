"""What verification asks of a runtime, and what a runtime answers.

A :class:`Runtime` loads one artifact (a GGUF file or a folder) and gives a :class:`Session`; a session
renders chats, tokenizes, generates greedily, and in most runtimes scores tokens that it is given. Everything
that goes wrong in the runtime's process (it aborts, hangs, refuses the file, answers nonsense) is one
exception, :class:`RuntimeFailure`, which the caller turns into a finding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from qexport.children.failure import Failure, RuntimeFailure

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from qexport.children.process import ChildProcess
    from qexport.verification.sight import Seen


@dataclass(frozen=True)
class Settings:
    """How to load an artifact.

    Attributes:
        draft_max: tokens the MTP head drafts at a time; 0 runs without it.
        context: tokens of context; small, because the key-value cache of a large model is not.
        threads: threads of the runtime; 0 lets it choose.
        time_limit: seconds from start to close, after which the process is killed.
        memory_limit: bytes that it may write to, on Linux; 0: what is free when it is started.
        parallel: answers at a time; each has the whole context.
        projector: llama.cpp's file of the vision tower, where pictures are to be shown.
        drafter: llama.cpp's file of the MTP head, where it is not in the model's.
    """

    draft_max: int = 0
    context: int = 2048
    threads: int = 0
    time_limit: float = 900.0
    memory_limit: int = 0
    parallel: int = 1
    projector: Path | None = None
    drafter: Path | None = None


def request_of(model: Path, settings: Settings) -> dict[str, Any]:
    """What an engine is asked to load, and how."""
    return {
        "model": str(model.resolve()),
        "context": settings.context,
        "threads": settings.threads,
        "draft_max": settings.draft_max,
        "parallel": settings.parallel,
        "projector": "" if settings.projector is None else str(settings.projector.resolve()),
        "drafter": "" if settings.drafter is None else str(settings.drafter.resolve()),
    }


@dataclass(frozen=True)
class Predicted:
    """One generated token; ``logprob`` is None where the runtime gave none, NaN where it gave no number."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """One answer: what went in, what came out, and how fast."""

    prompt_ids: tuple[int, ...]
    steps: tuple[Predicted, ...]
    text: str
    stop: str
    prompt_tok_s: float = 0.0
    tok_s: float = 0.0
    draft_n: int = 0
    draft_accepted: int = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(step.token for step in self.steps)


class Session(ABC):
    """A loaded artifact in a child of ours, which dies with it. Every method raises RuntimeFailure when the
    runtime fails.

    Args:
        version: of the runtime.
        load_s: seconds it took to load.
        facts: what the runtime says of the loading: ``strict``: it makes sure that every parameter was
            loaded; ``no_drafts``: why it has loaded the MTP head and cannot run it; and what else it says.
    """

    def __init__(
        self, process: ChildProcess, version: str, load_s: float, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.process = process
        self.version = version
        self.load_s = load_s
        self.facts = facts or {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    @abstractmethod
    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt that the file's own chat template makes of ``messages``, as the runtime applies it."""

    @abstractmethod
    def tokenize(self, text: str, *, add_special: bool) -> tuple[int, ...]:
        """Token ids; special tokens written in ``text`` are always recognised."""

    @abstractmethod
    def source_ids(
        self, folder: Path, texts: Sequence[str], *, add_special: bool
    ) -> list[tuple[int, ...]] | None:
        """``texts`` by the tokenizer of ``folder`` in this runtime's library: the same class of the same
        version, so that what differs is files. ``None`` where the runtime reads no folders."""

    @abstractmethod
    def ends(self) -> frozenset[int] | None:
        """Ids at which the runtime ends a reply; ``None`` where it does not say."""

    @abstractmethod
    def generate(self, prompt_ids: Sequence[int], *, n_predict: int, n_probs: int) -> Generation:
        """Greedy continuation; ``n_probs`` log-probabilities a step, none for drafted tokens."""

    @abstractmethod
    def score(self, ids: Sequence[int], start: int, *, top: int = 8) -> tuple[Predicted, ...]:
        """Log-probabilities of ``ids[start:]``, each given all ids before it; ``start`` is at least 1.

        RuntimeFailure (refused) where the runtime does not give them for tokens of a prompt.
        """

    def see(self, seen: Seen, *, n_predict: int, n_probs: int) -> Generation:
        """As :meth:`generate`, with a picture in the prompt. RuntimeFailure (lacking) where it shows none."""
        raise RuntimeFailure(Failure.LACKING, f"{self.process.what} is not shown pictures here")

    def embed(self, seen: Seen) -> np.ndarray:
        """What the tower makes of the picture, a row for each token. RuntimeFailure likewise."""
        raise RuntimeFailure(Failure.LACKING, f"{self.process.what} does not say what its tower makes of one")


class Runtime(ABC):
    """Something that runs artifacts.

    Attributes:
        drafts: whether it knows MTP heads at all.
        sees: whether the artifact's vision tower comes with it.
        towers: files that hold one for it, made of the artifact's own.
        ends_by_text: tokens at which it ends a reply whatever the artifact says.
        seer: the one that is shown pictures of the same artifacts, where this one takes text alone.
    """

    name: str
    drafts: bool
    sees: bool = True
    towers: tuple[Path, ...] = ()
    ends_by_text: frozenset[str] = frozenset()
    seer: Runtime | None = None

    @abstractmethod
    def open(self, model: Path, settings: Settings) -> Session:
        """Load ``model``. Raises RuntimeFailure, or EnvironmentProblem when the runtime is not there."""

    def open_tower(self, model: Path, settings: Settings) -> Session | None:
        """A session that embeds pictures and does nothing else; ``None`` where the one of ``open`` does."""
        return None
