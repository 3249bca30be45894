"""How heads are judged and tuned: values that can be made without loading torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["argmax", "sampling", "both"]
"""How the runtime drafts: the head's first choice, or drawn from its distribution and tested."""


@dataclass(frozen=True)
class ScoreOptions:
    """How to judge.

    Attributes:
        tokens: the most of the text that is read.
        chunk: tokens in a chunk; every chunk is read as a text of its own.
        depth: most drafts of a verification, for tokens per verification.
        temperature: of trunk and head, for drafts that are drawn.
    """

    tokens: int = 32768
    chunk: int = 512
    depth: int = 3
    temperature: float = 1.0


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        mode: how the runtime drafts.
        depth: drafts in a chain, the runtime's n-max.
        epochs: times that the text is read, and at least 200 steps; ``steps`` says it exactly.
        batch_tokens: tokens of a step.
        rate: the learning rate; probed where it is not given.
        seed: of how the documents are divided, and of their order.
    """

    mode: Mode = "argmax"
    depth: int = 3
    epochs: int = 4
    steps: int | None = None
    batch_tokens: int = 2048
    rate: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class TuneOptions:
    """What to tune with.

    Attributes:
        generic: share of the text that comes from the corpus inside the package, so that the head forgets
            nothing and every domain is judged.
        tokens: the most of the user's text; all by default.
        chunk: tokens in a chunk.
        temperature: of trunk and head, for drafts that are drawn.
    """

    train: TrainOptions = field(default_factory=TrainOptions)
    generic: float = 0.25
    tokens: int | None = None
    chunk: int = 512
    temperature: float = 1.0
