"""The loops of error feedback, in lanes: what columns are asked for, and their rounding, a unit at a time.

Thirty-two rows lie side by side, each column of them a line of numbers, columns in the order in which they
are rounded (:class:`Lines`). Two steps alternate. :func:`expect` adds up what the errors of all columns so
far ask of those of the next unit: nearly all the work, so four columns are summed at once in registers. Then
the family finds scales, and :func:`settle` rounds one column after the other.

Sums go over columns in their order, each product added without a rounding of its own
(:func:`~qexport.codecs.lanes.fused`), so no split of the rows changes a bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from qexport.codecs.feedback import Feedback
from qexport.codecs.iq4 import nearest_level
from qexport.codecs.jit import compiled
from qexport.codecs.lanes import (
    LANES,
    Lanes,
    absolute,
    float_lanes,
    fused,
    load,
    raw_bits,
    select,
    splat,
    store,
)

UNIFORM, E2M1, IQ4 = 0, 1, 2
"""Grids: whole numbers of steps; the levels of E2M1; those of IQ4_XS."""

_NEAR = 16  # columns that are rounded between two sums over those before them
_CHUNK = 256  # errors that stay in the first cache while they are added to several columns
_ROUNDER = np.float32(1.5 * 2**23)
_HALVES, _ONES, _TWOS = np.float32(2.0**22), np.float32(2.0**23), np.float32(2.0**24)
_SIGN = -0x80000000


class Lines(NamedTuple):
    """Rows that are being rounded: ``(groups of rows * columns, LANES)`` each, float32.

    ``scales`` and ``lows`` have a line for each scale: a level is worth ``scale * level - low``.
    """

    values: np.ndarray
    errors: np.ndarray  # value minus what is stored
    levels: np.ndarray
    scales: np.ndarray
    lows: np.ndarray
    home: np.ndarray  # int64 (columns,): for each column its scale


def work_on(rows: torch.Tensor, feedback: Feedback, width: int) -> Lines:
    """Rows, in bfloat16, float16 or float32, laid out; ``width`` columns share a scale.

    The last group of rows is filled up with the last row.
    """
    n, columns = rows.shape
    groups = -(-n // LANES)
    order = torch.from_numpy(feedback.order)
    lines = torch.arange(groups * LANES).clamp_(max=n - 1)
    values = rows.index_select(0, lines).float().index_select(1, order)
    values = values.view(groups, LANES, columns).transpose(1, 2).contiguous()
    count = columns // width
    return Lines(
        values.view(-1, LANES).numpy(),
        torch.zeros(groups * columns, LANES).numpy(),
        torch.zeros(groups * columns, LANES).numpy(),
        torch.zeros(groups * count, LANES).numpy(),
        torch.zeros(groups * count, LANES).numpy(),
        feedback.order // width,
    )


def descend(work: Lines, feedback: Feedback, grid: int, bottom: float, top: float) -> None:
    """Round all columns once more, if the feedback says how; the arguments are those of :func:`settle`."""
    if feedback.coupling is None:
        return
    columns = len(feedback.order)
    for first in range(0, columns, _CHUNK):
        count = min(_CHUNK, columns - first)
        target = lines_for(work, count, columns)
        expect(work, feedback.coupling, first, count, True, target)
        settle(work, feedback.coupling, first, count, True, target, grid, bottom, top)


def lines_for(work: Lines, count: int, columns: int) -> np.ndarray:
    """Room for so many lines of each group of rows."""
    room: np.ndarray = torch.empty(len(work.values) // columns * count, LANES).numpy()
    return room


def rows_of(lines: np.ndarray, places: np.ndarray, n: int) -> torch.Tensor:
    """``(n, len(places))`` rows of ``lines``, whose column ``i`` is the line ``places[i]`` of its group."""
    table = torch.from_numpy(lines).view(-(-n // LANES), -1, LANES)
    found = table.index_select(1, torch.from_numpy(places)).transpose(1, 2)
    return found.reshape(-1, len(places))[:n]


@compiled
def add_reach(
    errors: np.ndarray,
    reach: np.ndarray,
    base: int,
    column: int,
    count: int,
    start: int,
    stop: int,
    target: np.ndarray,
    at: int,
) -> None:
    """Add what the errors of columns ``[start, stop)`` ask of ``count`` columns, a multiple of four.

    Args:
        base: the line of the group's first column in ``errors``.
        column: the first of those columns; ``at``: its line in ``target``.
    """
    for low in range(start, stop, _CHUNK):
        high = min(stop, low + _CHUNK)
        for k in range(0, count, 4):
            one, two = load(target, at + k), load(target, at + k + 1)
            three, four = load(target, at + k + 2), load(target, at + k + 3)
            for i in range(low, high):
                error = load(errors, base + i)
                one = fused(reach[column + k, i], error, one)
                two = fused(reach[column + k + 1, i], error, two)
                three = fused(reach[column + k + 2, i], error, three)
                four = fused(reach[column + k + 3, i], error, four)
            store(target, at + k, one)
            store(target, at + k + 1, two)
            store(target, at + k + 2, three)
            store(target, at + k + 3, four)


@compiled
def expect(work: Lines, reach: np.ndarray, first: int, count: int, again: bool, target: np.ndarray) -> None:
    """What columns ``[first, first + count)`` are best rounded from, as far as those outside ask it.

    Args:
        reach: in the first round the reach, again the coupling.
        again: whether all columns are rounded already.
        target: float32 ``(groups * count, LANES)``, filled.
    """
    columns = len(reach)
    for group in range(len(target) // count):
        base, at = group * columns, group * count
        for i in range(count):
            store(target, at + i, load(work.values, base + first + i))
        add_reach(work.errors, reach, base, first, count, 0, first, target, at)
        if again:
            add_reach(work.errors, reach, base, first, count, first + count, columns, target, at)


@compiled
def settle(
    work: Lines,
    reach: np.ndarray,
    first: int,
    count: int,
    again: bool,
    target: np.ndarray,
    grid: int,
    bottom: float,
    top: float,
) -> None:
    """Round columns ``[first, first + count)`` one after the other from what :func:`expect` has found.

    Args:
        count: a multiple of 16.
        grid, bottom, top: levels, the lowest and the highest; what has no scale gets that nearest to 0.
    """
    for group in range(len(target) // count):
        settle_group(work, reach, group, first, count, again, target, group * count, grid, bottom, top)


@compiled
def settle_group(
    work: Lines,
    reach: np.ndarray,
    group: int,
    first: int,
    count: int,
    again: bool,
    target: np.ndarray,
    at: int,
    grid: int,
    bottom: float,
    top: float,
) -> None:
    """The same for one group of rows, whose lines in ``target`` begin ``at``."""
    columns, errors = len(reach), work.errors
    base, scales = group * columns, group * (len(work.scales) * columns // len(work.values))
    for near in range(first, first + count, _NEAR):
        line = at + near - first
        add_reach(errors, reach, base, near, _NEAR, first, near, target, line)
        if again:
            add_reach(errors, reach, base, near, _NEAR, near + _NEAR, first + count, target, line)
        for column in range(near, near + _NEAR):
            value = load(target, line + column - near)
            for i in range(near, column):
                value = fused(reach[column, i], load(errors, base + i), value)
            if again:
                for i in range(column + 1, near + _NEAR):
                    value = fused(reach[column, i], load(errors, base + i), value)
            scale, low = (
                load(work.scales, scales + work.home[column]),
                load(work.lows, scales + work.home[column]),
            )
            level = select(scale != 0, (value + low) / scale, 0)
            level = select(level > bottom, level, bottom)
            level = _on_grid(select(level < top, level, top), grid)
            store(work.levels, base + column, level)
            store(errors, base + column, load(work.values, base + column) - (scale * level - low))


@compiled
def _on_grid(level: Lanes, grid: int) -> Lanes:
    """The nearest of the grid, ties to even, of IQ4_XS up."""
    if grid == UNIFORM:
        return (level + _ROUNDER) - _ROUNDER
    if grid == IQ4:
        return nearest_level(level)
    size = absolute(level)
    step = select(size < 2, splat(_HALVES), select(size < 4, splat(_ONES), splat(_TWOS)))
    return float_lanes(raw_bits((size + step) - step) | raw_bits(level) & _SIGN)
