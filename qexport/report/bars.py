"""Bars from zero, one under the other, with a name on the left and the figure at the end of the bar.

Names stand on a line of their own above their bars where the picture is narrow or a group has several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.report.scale import Linear
from qexport.report.svg import drawing, element, group, line, rectangle, text, text_width

if TYPE_CHECKING:
    from markupsafe import Markup


_BAR, _STEP, _HEAD, _GAP = 15.0, 21.0, 23.0, 10.0
_TOP, _BOTTOM = 6.0, 42.0


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: on the left of it.
        figure: at its end, or after its spread.
        spread: the least and the most that were seen.
        beside: another value to compare with, drawn as a line across.
        class_: how it looks.
    """

    name: str
    value: float
    figure: str
    class_: str
    spread: tuple[float, float] | None = None
    beside: float | None = None

    @property
    def reach(self) -> float:
        """The value behind which there is room for the figure."""
        return max(self.value, self.spread[1] if self.spread else 0.0, self.beside or 0.0)


@dataclass(frozen=True)
class BarGroup:
    """Bars under a heading; an empty heading takes no room."""

    title: str
    bars: tuple[Bar, ...]


def draw_bars(
    groups: Sequence[BarGroup], width: float, *, label: str, unit: str, high: float, percent: bool = False
) -> Markup:
    """The picture.

    Args:
        label: what a screen reader says.
        unit: what the axis is called.
        high: the value at its right end.
        percent: ticks are shares, shown as per cent.
    """
    bars = [bar for each in groups for bar in each.bars]
    left = 10.0 + max(text_width(bar.name) for bar in bars)
    # As long as every bar with its figure behind it fits; a third of the room at least.
    longest = min((width - left - 10 - text_width(bar.figure)) * high / max(bar.reach, 1e-9) for bar in bars)
    x = Linear(0.0, high, left, left + min(max(longest, (width - left) / 3), width - left - 16))
    parts: list[Markup] = []
    y = _TOP
    for each in groups:
        if each.title:
            parts.append(text(0, y + 13, each.title, "heading"))
            y += _HEAD
        for bar in each.bars:
            parts.append(_bar(bar, x, y))
            y += _STEP
        y += _GAP if each.title else 0
    count = max(2, int((x.stop - x.start) / 70))
    grid = [line(x(tick), _TOP, x(tick), y, "grid") for tick in x.ticks(count)[1:]]
    marks = [
        text(x(tick), y + 15, f"{100 * tick:.0f}" if percent else f"{tick:g}", "tick", "middle")
        for tick in x.ticks(count)
    ]
    marks.append(text((x.start + x.stop) / 2, y + 33, unit, "label", "middle"))
    grid.append(line(x.start, _TOP, x.start, y, "axis"))
    return drawing(width, y + _BOTTOM, label, [*grid, *parts, *marks])


def _bar(bar: Bar, x: Linear, y: float) -> Markup:
    middle = y + _BAR / 2
    parts = [
        text(x.start - 7, middle + 4, bar.name, "name", "end"),
        rectangle(x.start, y, x(bar.value) - x.start, _BAR, f"bar {bar.class_}"),
    ]
    if bar.spread is not None:
        low, high = (x(value) for value in bar.spread)
        parts += [line(low, middle, high, middle, "spread")]
        parts += [line(at, middle - 3, at, middle + 3, "spread") for at in (low, high)]
    if bar.beside is not None:
        at = x(bar.beside)
        parts.append(line(at, y - 2, at, y + _BAR + 2, "beside"))
    parts.append(text(x(bar.reach) + 6, middle + 4, bar.figure, "figure"))
    return group(*parts, element("title", f"{bar.name}: {bar.figure}"), class_="row")
