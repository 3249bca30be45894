"""What a chart is, and its parts: SVG elements as escaped text, coordinates in pixels, y downwards.

Colours and fonts are not here: elements have classes, and the page's style says what those look like on a
light and on a dark ground. Text stays text, so that numbers can be selected and copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

from markupsafe import Markup, escape

from qexport.formats.registry import words_of
from qexport.receipt.safe_text import without_hidden

WIDE = 1040.0
"""The width of a picture on a page, in pixels."""
NARROW = 350.0
"""On a phone, where a picture shrunk to fit could not be read."""


_SIZE = 13.0  # of the page's style
_CHARACTER = 0.64  # mean advance of a wide sans-serif's digits and letters, in ems
_LONGEST = 32
_CIRCLE = "M-5.0,0a5.0,5.0 0 1,0 10.0,0a5.0,5.0 0 1,0 -10.0,0Z"


@dataclass(frozen=True)
class LegendEntry:
    """A mark (see :func:`small`) and what it stands for."""

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


@dataclass(frozen=True)
class Box:
    """A rectangle that something covers."""

    left: float
    top: float
    right: float
    bottom: float

    def inside(self, other: Box) -> bool:
        """Whether all of this one is in the other."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom

    def distance(self, x: float, y: float) -> float:
        """From a point to its nearest edge; 0 inside."""
        return math.hypot(max(self.left - x, 0, x - self.right), max(self.top - y, 0, y - self.bottom))


def element(name: str, *children: Markup | str, **attributes: str | float | None) -> Markup:
    """``<name ...>children</name>``; attributes of ``None`` are left out, ``_`` becomes ``-``."""
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(
        child if isinstance(child, Markup) else escape(without_hidden(child)) for child in children
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, given, inner)


def drawing(width: float, height: float, label: str, children: Sequence[Markup]) -> Markup:
    """The picture; ``label`` is what a screen reader says."""
    box = f"0 0 {_value(width)} {_value(height)}"
    return element("svg", *children, viewBox=box, width=width, height=height, role="img", aria_label=label)


def small(*children: Markup) -> Markup:
    """The mark of a legend, 14 by 14 pixels."""
    return element("svg", *children, width=14.0, height=14.0, aria_hidden="true")


def group(*children: Markup, class_: str, at: tuple[float, float] | None = None) -> Markup:
    """Elements together, moved to ``at``."""
    where = None if at is None else f"translate({_value(at[0])},{_value(at[1])})"
    return element("g", *children, class_=class_, transform=where)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rectangle(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    return element("rect", x=x, y=y, width=max(width, 0.0), height=height, class_=class_)


def mark(shape: str, class_: str = "") -> Markup:
    """The shape of a format: colour alone tells nothing to some, and nothing in print. Others are circles."""
    own = words_of(shape).mark
    return element("path", d=own or _CIRCLE, class_=f"mark {shape if own else 'other'} {class_}".strip())


def key(shape: str, class_: str = "") -> Markup:
    """The shape of a format beside its name."""
    return small(group(mark(shape, class_), class_="point", at=(7.0, 7.0)))


def text(
    x: float, y: float, words: str, class_: str = "", anchor: str | None = None, *, turned: bool = False
) -> Markup:
    """``anchor``: ``middle`` or ``end``; y is the baseline; ``turned``: it reads upwards."""
    turn = f"rotate(-90 {_value(x)} {y:.1f})" if turned else None
    return element("text", words, x=x, y=y, class_=class_ or None, text_anchor=anchor, transform=turn)


def short(words: str) -> str:
    """A name that leaves a picture room; those of exports are shorter."""
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


def text_width(words: str) -> float:
    """How wide the words are in a picture, in pixels: rather more than less."""
    return _SIZE * sum(1.0 if east_asian_width(each) in "WF" else _CHARACTER for each in words)


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return without_hidden(value)
    return f"{value:.1f}".removesuffix(".0")
