"""From values to pixels: a straight scale and a logarithmic one, each with round numbers to label."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Linear", "Log"]


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
    def over(cls, values: list[float], start: float, stop: float, zero: float, *, floor: float) -> Log:
        """A scale of whole decades that holds all values of at least ``floor``."""
        known = [value for value in values if value >= floor] or [floor]
        low = math.floor(math.log10(min(known)) + 1e-9)
        high = max(math.ceil(math.log10(max(known)) - 1e-9), low + 1)
        return cls(10.0**low, 10.0**high, start, stop, zero)

    def is_zero(self, value: float) -> bool:
        """Whether a value lies at ``zero``."""
        return value < self.low * (1 - 1e-9)

    def __call__(self, value: float) -> float:
        if self.is_zero(value):
            return self.zero
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Every power of ten from end to end."""
        first, last = round(math.log10(self.low)), round(math.log10(self.high))
        return [10.0**power for power in range(first, last + 1)]


def _round_step(step: float) -> float:
    """The step of 1, 2 or 5 times a power of ten that is nearest above."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if step <= factor * power * (1 + 1e-9))
