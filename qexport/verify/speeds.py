"""Speeds as values: what was measured, of what, where. Frozen and JSON-able, for receipts and reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from qexport.verify.machine import Machine

__all__ = ["Bench", "Range", "Speed"]


@dataclass(frozen=True)
class Range:
    """Tokens a second over repeats: the median, the slowest and the fastest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Of at least one value."""
        return cls(round(median(values), 3), round(min(values), 3), round(max(values), 3))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Range:
        """Raises KeyError, TypeError or ValueError for what are no speeds."""
        found = [float(value[name]) for name in ("median", "low", "high")]
        if not all(math.isfinite(speed) and speed > 0 for speed in found):
            raise ValueError(f"{found} are no speeds")
        return cls(*found)


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

    def to_json(self) -> dict[str, Any]:
        share = self.acceptance
        return {**asdict(self), "acceptance": None if share is None else round(share, 4)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Speed:
        prompt = value.get("prompt_tok_s")
        return cls(
            n_max=int(value["n_max"]),
            tok_s=Range.from_json(value["tok_s"]),
            prompt_tok_s=None if prompt is None else Range.from_json(prompt),
            drafted=int(value.get("drafted", 0)),
            accepted=int(value.get("accepted", 0)),
        )


@dataclass(frozen=True)
class Bench:
    """All of it.

    Attributes:
        threads: of the runtime; 0: its own choice.
        prompts, n_predict, repeats: how many prompts were answered, by at most how many tokens, how often.
        prompt_tokens: of the prompt that reading was measured on.
        notes: what could not be measured, and why.
    """

    runtime: str
    runtime_version: str
    machine: Machine
    threads: int
    prompts: int
    n_predict: int
    repeats: int
    prompt_tokens: int
    speeds: tuple[Speed, ...]
    notes: tuple[str, ...] = ()

    @property
    def way(self) -> str:
        """Runtime, threads and machine, in words."""
        own = "threads by its own choice"
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}" if self.threads else own
        return f"{self.runtime} {self.runtime_version}, {threads}, on {self.machine}"

    @property
    def bare(self) -> Speed | None:
        """Without MTP."""
        return next((speed for speed in self.speeds if speed.n_max == 0), None)

    @property
    def best(self) -> Speed | None:
        """The fastest setting."""
        return max(self.speeds, key=lambda speed: speed.tok_s.median, default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; no host names or paths in it."""
        return {
            "runtime": {"name": self.runtime, "version": self.runtime_version},
            "machine": self.machine.to_json(),
            "threads": self.threads,
            "prompts": self.prompts,
            "n_predict": self.n_predict,
            "repeats": self.repeats,
            "prompt_tokens": self.prompt_tokens,
            "speeds": [speed.to_json() for speed in self.speeds],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Bench:
        """What :meth:`to_json` gave. Raises KeyError, TypeError or ValueError for what is none."""
        counts = ("threads", "prompts", "n_predict", "repeats", "prompt_tokens")
        return cls(
            runtime=str(value["runtime"]["name"]),
            runtime_version=str(value["runtime"]["version"]),
            machine=Machine.from_json(value["machine"]),
            speeds=tuple(Speed.from_json(speed) for speed in value["speeds"]),
            notes=tuple(str(note) for note in value.get("notes", ())),
            **{name: int(value[name]) for name in counts},
        )
