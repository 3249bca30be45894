"""What every chart of a report is: a picture in two widths, and words that say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

WIDE = 720.0
"""The width of a picture on a page, in pixels."""
NARROW = 350.0
"""On a phone, where a picture shrunk to fit could not be read."""


@dataclass(frozen=True)
class LegendEntry:
    """A mark and what it stands for; ``mark`` is a small drawing of 14 by 14 pixels."""

    mark: Markup
    words: str


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        reading: how to read it, in a sentence or two.
        draw: the picture at a width in pixels.
    """

    title: str
    reading: str
    draw: Callable[[float], Markup]
    legend: tuple[LegendEntry, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def wide(self) -> Markup:
        return self.draw(WIDE)

    @property
    def narrow(self) -> Markup:
        return self.draw(NARROW)
