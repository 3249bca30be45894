"""Names beside points, so that none covers another, a point, or the edge.

Where there is no room for a name, the points of its crowd have a number together, and the names stand in a
key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qexport.report.svg import Box, text_width

_GAP = 9.0
_UP, _DOWN = 9.75, 3.9  # of a line of text, above and below its baseline
_AROUND = 7.0
_CROWD = 10.0  # marks that are nearer cover each other
_STEP = 13.0
_APART = 2.0


@dataclass(frozen=True)
class Label:
    """Words at a baseline, and the point that they name; ``anchor`` as SVG has it.

    Attributes:
        far: too far from its point to go without a line.
    """

    words: str
    x: float
    y: float
    anchor: str
    point: tuple[float, float]
    far: bool = False

    @property
    def box(self) -> Box:
        """What it covers."""
        wide = text_width(self.words)
        left = self.x - {"start": 0.0, "middle": wide / 2, "end": wide}[self.anchor]
        return Box(left, self.y - _UP, left + wide, self.y + _DOWN)

    @property
    def leader(self) -> tuple[float, float, float, float]:
        """The line from its point to it."""
        px, py = self.point
        return px, py, self.x, self.y - _UP - 1 if self.y - _UP > py else self.y + _DOWN - 1


@dataclass(frozen=True)
class Labels:
    """Those that there is room for, and the key: to each number its names."""

    placed: tuple[Label, ...]
    key: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class _Wanted:
    """Words for a point: a name, or a number of the names of a crowd."""

    words: str
    point: tuple[float, float]
    names: tuple[str, ...] = ()


def place(
    points: Sequence[tuple[float, float]], names: Sequence[str], frame: Box, obstacles: Sequence[Box] = ()
) -> Labels:
    """A place for each name that is not empty: right, left, above or below its point, or further off.

    Args:
        obstacles: what names cover where there is no other room.
    """
    crowds = list(_crowds(points, names))
    numbered: set[int] = set()
    while True:
        wanted = list(_wanted(points, names, crowds, numbered))
        placed, failed = _placed(points, [want for _, want in wanted], frame, obstacles)
        more = {wanted[at][0] for at in failed} - numbered
        if not more:
            return Labels(placed, tuple((want.words, want.names) for _, want in wanted if want.names))
        numbered |= more


def _crowds(points: Sequence[tuple[float, float]], names: Sequence[str]) -> Iterator[list[int]]:
    """Points with names, those together that cannot be told apart."""
    left = [at for at, name in enumerate(names) if name]
    while left:
        x, y = points[left[0]]
        crowd = [at for at in left if math.dist((x, y), points[at]) < _CROWD]
        left = [at for at in left if math.dist((x, y), points[at]) >= _CROWD]
        yield crowd


def _wanted(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    crowds: Sequence[Sequence[int]],
    numbered: set[int],
) -> Iterator[tuple[int, _Wanted]]:
    """With the crowd of each; numbers, which cannot be left out, come first."""
    for number, at in enumerate(sorted(numbered), 1):
        crowd = crowds[at]
        yield at, _Wanted(str(number), points[crowd[0]], tuple(names[each] for each in crowd))
    for at, crowd in enumerate(crowds):
        if at not in numbered:
            yield from ((at, _Wanted(names[each], points[each])) for each in crowd)


def _placed(
    points: Sequence[tuple[float, float]], wanted: Sequence[_Wanted], frame: Box, obstacles: Sequence[Box]
) -> tuple[tuple[Label, ...], list[int]]:
    """The labels that found room, and the places in ``wanted`` of those that did not."""
    hard, soft = _Covered(frame), _Covered(frame)
    for x, y in points:
        hard.add(Box(x - _AROUND, y - _AROUND, x + _AROUND, y + _AROUND))
    for obstacle in obstacles:
        soft.add(obstacle)
    words = _Covered(frame)
    labels: list[Label] = []
    failed: list[int] = []
    for at, want in enumerate(wanted):
        tried = [
            (label, label.box)
            for label in _candidates(want.words, want.point)
            if label.box.inside(frame)
            and not hard.meets(label.box)
            and not (label.far and words.crossed(label))
            and not (label.far and not want.names and _misleads(label, points))
        ]
        label, box = next(
            (pair for pair in tried if not soft.meets(pair[1])), tried[0] if tried else (None, None)
        )
        if label is None or box is None:
            failed.append(at)
            continue
        labels.append(label)
        for covered in (hard, words):
            covered.add(Box(box.left - _APART, box.top, box.right + _APART, box.bottom))
        if label.far:
            hard.follow(label)
    return tuple(labels), failed


def _misleads(label: Label, points: Sequence[tuple[float, float]]) -> bool:
    """Whether another point is nearer to the words than theirs: a line does not help against that."""
    own = label.box.distance(*label.point)
    return any(label.box.distance(*point) < own for point in points if point != label.point)


class _Covered:
    """Which pixels of the frame are covered: to ask costs the same however many things cover them."""

    def __init__(self, frame: Box) -> None:
        self._frame = frame
        shape = math.ceil(frame.bottom - frame.top), math.ceil(frame.right - frame.left)
        self._pixels = np.zeros(shape, dtype=bool)

    def add(self, box: Box) -> None:
        self._pixels[self._of(box)] = True

    def meets(self, box: Box) -> bool:
        return bool(self._pixels[self._of(box)].any())

    def follow(self, label: Label) -> None:
        """The line to a label is covered."""
        for box in _along(label):
            self.add(box)

    def crossed(self, label: Label) -> bool:
        """Whether the line to a label crosses what is covered."""
        return any(self.meets(box) for box in _along(label))

    def _of(self, box: Box) -> tuple[slice, slice]:
        across, down = self._frame.left, self._frame.top
        return (
            slice(max(0, math.floor(box.top - down)), max(0, math.ceil(box.bottom - down))),
            slice(max(0, math.floor(box.left - across)), max(0, math.ceil(box.right - across))),
        )


def _along(label: Label) -> Iterator[Box]:
    """The line to a label, in pieces of two pixels."""
    x1, y1, x2, y2 = label.leader
    steps = max(1, math.ceil(math.dist((x1, y1), (x2, y2)) / 2))
    for step in range(steps):
        x, y = x1 + (x2 - x1) * step / steps, y1 + (y2 - y1) * step / steps
        yield Box(x - 1, y - 1, x + 1, y + 1)


def _candidates(words: str, point: tuple[float, float]) -> Iterator[Label]:
    """The nearest first."""
    x, y = point
    yield Label(words, x + _GAP, y + 4, "start", point)
    yield Label(words, x - _GAP, y + 4, "end", point)
    for step in range(6):
        away, far = 14.0 + _STEP * step, step > 0
        yield Label(words, x, y - away + 3, "middle", point, far)
        yield Label(words, x, y + away + 6, "middle", point, far)
        for aside in (_GAP, _GAP + _STEP * step) if far else (_GAP,):
            for side, anchor in ((aside, "start"), (-aside, "end")):
                yield Label(words, x + side, y - away + 4, anchor, point, far)
                yield Label(words, x + side, y + away + 4, anchor, point, far)
