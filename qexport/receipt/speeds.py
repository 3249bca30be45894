"""Speeds as values: what was measured, by what runtime, on what machine (its host is not named)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from qexport.receipt.typed import as_json


@dataclass(frozen=True)
class RuntimeVersion:
    """A runtime; ``none``: nothing ran it."""

    name: str = "none"
    version: str = ""

    def __str__(self) -> str:
        return "" if self.name == "none" else f"{self.name} {self.version}".strip()


@dataclass(frozen=True)
class Machine:
    """``processors`` counts hardware threads; ``gpu`` is empty where none was seen."""

    cpu: str
    processors: int
    system: str
    gpu: str = ""

    def __str__(self) -> str:
        gpu = f", {self.gpu}" if self.gpu else ""
        return f"{self.cpu}, {self.processors} hardware threads, {self.system}{gpu}"


@dataclass(frozen=True)
class Range:
    """Tokens a second over repeats: the median, the slowest and the fastest."""

    median: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(speed) and speed > 0 for speed in (self.median, self.low, self.high)):
            raise ValueError("these are no speeds")

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Of at least one value."""
        return cls(round(median(values), 3), round(min(values), 3), round(max(values), 3))


@dataclass(frozen=True)
class Speed:
    """One setting.

    Attributes:
        n_max: tokens that the MTP head drafts at a time; 0: without it.
        tok_s: generation.
        prompt_tok_s: reading a prompt; ``None`` where the runtime does not say.
        drafted, accepted: tokens drafted in all counted runs, and how many of them were kept.
    """

    n_max: int
    tok_s: Range
    prompt_tok_s: Range | None = None
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that were kept; ``None`` where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def derived(self) -> dict[str, Any]:
        return {"acceptance": None if self.acceptance is None else round(self.acceptance, 4)}


@dataclass(frozen=True)
class Bench:
    """All of it.

    Attributes:
        threads: of the runtime; 0: its own choice.
        prompts, n_predict, repeats: how many prompts were answered, by at most how many tokens, how often.
        prompt_tokens: of the prompt that reading was measured on.
        notes: what could not be measured, and why.
    """

    engine: RuntimeVersion = field(metadata={"json": "runtime"})
    machine: Machine
    threads: int
    prompts: int
    n_predict: int
    repeats: int
    prompt_tokens: int
    speeds: tuple[Speed, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.speeds:
            raise ValueError("nothing was measured")

    @property
    def way(self) -> str:
        """Runtime, threads and machine, in words."""
        own = "threads by its own choice"
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}" if self.threads else own
        return f"{self.engine}, {threads}, on {self.machine}"

    @property
    def bare(self) -> Speed | None:
        """Without MTP."""
        return next((speed for speed in self.speeds if speed.n_max == 0), None)

    @property
    def best(self) -> Speed:
        """The fastest setting."""
        return max(self.speeds, key=lambda speed: speed.tok_s.median)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; no host names or paths in it."""
        return dict(as_json(self))
