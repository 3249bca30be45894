"""From values to pixels: a straight scale and a logarithmic one, each with round numbers to label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_ROOM = 1.5  # beyond the least and the most, as a factor
_FEW = 3


@dataclass(frozen=True)
class Linear:
    """``low`` lies at pixel ``start``, ``high`` at ``stop``."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers between the ends, about so many."""
        step = _round_step((self.high - self.low) / max(about, 1))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class Log:
    """Powers of ten evenly spaced. What lies at or below zero, or under ``low``, has a place of its own at
    ``zero``, beyond ``start``: a logarithm has none for it.
    """

    low: float
    high: float
    start: float
    stop: float
    zero: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, stop: float, zero: float, *, floor: float) -> Log:
        """A scale of a decade at least that holds all values of at least ``floor``, with some room."""
        known = [value for value in values if value >= floor] or [10 * floor]
        low, high = min(known) / _ROOM, max(known) * _ROOM
        wider = max(1.0, math.sqrt(10 * low / high))
        return cls(low / wider, high * wider, start, stop, zero)

    def is_zero(self, value: float) -> bool:
        """Whether a value lies at ``zero``."""
        return value < self.low

    def __call__(self, value: float) -> float:
        if self.is_zero(value):
            return self.zero
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + min(share, 1.0) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Every power of ten on the scale; where there are few, twice and five times them, too."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        powers = [10.0**power for power in range(first, last + 1)]
        inside = [value for value in powers if self.low <= value <= self.high]
        if len(inside) >= _FEW:
            return inside
        return [v for power in powers for v in (power, 2 * power, 5 * power) if self.low <= v <= self.high]


def _round_step(step: float) -> float:
    """The nearest step of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return min((factor * power for factor in (1, 2, 5, 10)), key=lambda found: abs(math.log(found / step)))
