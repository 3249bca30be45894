"""Names beside points, so that none covers another, a point, or the edge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qexport.report.svg import Box, text_width

_GAP = 9.0
_SIZE = 12.0
_AROUND = 7.0


@dataclass(frozen=True)
class Label:
    """Words at a baseline; ``anchor`` as SVG has it. ``far``: too far from its point to go without a line."""

    words: str
    x: float
    y: float
    anchor: str
    far: bool = False


def place(
    points: Sequence[tuple[float, float]], names: Sequence[str], frame: Box, obstacles: Sequence[Box] = ()
) -> list[Label]:
    """A place for each name: right, left, above or below its point, else further off.

    Args:
        obstacles: what else no name may cover.
    """
    taken = _Taken(frame, (Box(x - _AROUND, y - _AROUND, x + _AROUND, y + _AROUND) for x, y in points))
    for obstacle in obstacles:
        taken.add(obstacle)
    labels: list[Label] = []
    for (x, y), name in zip(points, names, strict=True):
        if not name:
            labels.append(Label("", x, y, "start"))
            continue
        tried = _candidates(x, y, name)
        free = ((label, box) for label, box in tried if box.inside(frame) and not taken.meets(box))
        label, box = next(free, tried[0] if tried[0][1].inside(frame) else tried[1])
        taken.add(box)
        labels.append(label)
    return labels


class _Taken:
    """Which pixels of the frame are covered: to ask costs the same however many things cover them."""

    def __init__(self, frame: Box, boxes: Iterable[Box]) -> None:
        self._frame = frame
        shape = math.ceil(frame.bottom - frame.top), math.ceil(frame.right - frame.left)
        self._covered = np.zeros(shape, dtype=bool)
        for box in boxes:
            self.add(box)

    def add(self, box: Box) -> None:
        self._covered[self._of(box)] = True

    def meets(self, box: Box) -> bool:
        return bool(self._covered[self._of(box)].any())

    def _of(self, box: Box) -> tuple[slice, slice]:
        across, down = self._frame.left, self._frame.top
        return (
            slice(max(0, math.floor(box.top - down)), max(0, math.ceil(box.bottom - down))),
            slice(max(0, math.floor(box.left - across)), max(0, math.ceil(box.right - across))),
        )


def _candidates(x: float, y: float, name: str) -> list[tuple[Label, Box]]:
    wide, up, down = text_width(name, _SIZE), 0.75 * _SIZE, 0.3 * _SIZE
    found: list[tuple[Label, Box]] = []

    def add(at: float, base: float, anchor: str, *, far: bool = False) -> None:
        left = at - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        found.append((Label(name, at, base, anchor, far), Box(left, base - up, left + wide, base + down)))

    add(x + _GAP, y + 4, "start")
    add(x - _GAP, y + 4, "end")
    for step in range(4):
        away = 14.0 + 13.0 * step
        add(x, y - away + 3, "middle", far=step > 0)
        add(x, y + away + 6, "middle", far=step > 0)
        for side, anchor in ((_GAP, "start"), (-_GAP, "end")):
            add(x + side, y - away + 4, anchor, far=step > 0)
            add(x + side, y + away + 4, anchor, far=step > 0)
    return found
