"""What Q2_K, Q4_K and Q5_K share: 256 values in sub-blocks, whose scales and minima are codes themselves.

A block is worked on in three steps: every sub-block is searched for its scale and minimum
(:func:`search_sub_blocks`), those are rounded to whole steps of two float16 numbers
(:func:`~qexport.codecs.range_search.fit_scales` or ``round_scales``), and the values are rounded once more
with what has been stored (:func:`final_codes`). Thirty-two rows at once, in lanes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import code
from qexport.codecs.lanes import LANES, Lanes, absolute, any_lane, load, root, select, splat, store, to_float
from qexport.codecs.range_search import found_codes, search_range
from qexport.codecs.tiles import scratch

BLOCK = 256


class Scratch(NamedTuple):
    """Scratch of one call, small enough for the first cache; the second dimension is ``LANES``."""

    tile: np.ndarray  # the values, float32 (256, LANES)
    codes: np.ndarray  # int32 in the same place: a code replaces its value
    weights: np.ndarray  # of one sub-block
    levels: np.ndarray
    scales: np.ndarray  # per sub-block, found by the search: float32
    minima: np.ndarray
    totals: np.ndarray  # sum of weights
    inverses: np.ndarray  # with origins: the levels the search ended with
    origins: np.ndarray
    scale_codes: np.ndarray  # per sub-block, as stored: int32
    minimum_codes: np.ndarray
    packed: np.ndarray  # the block, int32 (48, LANES)
    rest: np.ndarray  # uint8 (LANES, 64): the end of a row


@compiled
def work_arrays(subs: int) -> Scratch:
    """Scratch for blocks of ``subs`` sub-blocks."""
    size = BLOCK // subs
    tile = scratch(BLOCK, LANES)
    return Scratch(
        tile,
        tile.view(np.int32),
        scratch(size, LANES),
        scratch(size, LANES),
        scratch(subs, LANES),
        scratch(subs, LANES),
        scratch(subs, LANES),
        scratch(subs, LANES),
        scratch(subs, LANES),
        scratch(subs, LANES).view(np.int32),
        scratch(subs, LANES).view(np.int32),
        scratch(48, LANES).view(np.int32),
        scratch(LANES, 16).view(np.uint8),
    )


@compiled
def search_sub_blocks(
    work: Scratch,
    importance: np.ndarray,
    steps: np.ndarray,
    top: int,
    spread_factor: float,
    by_magnitude: bool,
) -> None:
    """Search each sub-block of ``work.tile``; fills what ``work`` has per sub-block, but for the codes.

    Args:
        importance: float32 ``(256,)``, or empty. With it an error's weight is the importance times
            ``sqrt(spread_factor * mean square of the block + x * x)``; without it ``|x|``, plus the
            sub-block's root mean square if errors are squared.
    """
    tile, weights = work.tile, work.weights
    size = len(weights)
    spread = splat(0)
    if len(importance):
        for i in range(BLOCK):
            x = load(tile, i)
            spread = spread + x * x
        spread = np.float32(spread_factor) * spread / BLOCK
    for sub in range(BLOCK // size):
        start = sub * size
        total = splat(0)
        if len(importance):
            for i in range(size):
                x = load(tile, start + i)
                weight = importance[start + i] * root(spread + x * x)
                total = total + weight
                store(weights, i, weight)
        else:
            if not by_magnitude:
                for i in range(size):
                    x = load(tile, start + i)
                    total = total + x * x
                spread = root(total / size)
            for i in range(size):
                store(weights, i, spread + absolute(load(tile, start + i)))
        store(work.totals, sub, total)
        scale, minimum, inverse, origin = search_range(
            tile, start, weights, work.levels, steps, top, by_magnitude, len(importance) > 0
        )
        store(work.scales, sub, scale)
        store(work.minima, sub, minimum)
        store(work.inverses, sub, inverse)
        store(work.origins, sub, origin)


@compiled
def final_codes(work: Scratch, d: Lanes, d_min: Lanes, top: int, weighted: bool) -> None:
    """Round every value with its stored scale and minimum: ``work.codes`` from ``work.tile``.

    Where a scale has come out as zero the codes are those of the search, as in ggml; they decode to the
    minimum whatever they are.
    """
    tile, codes = work.tile, work.codes
    size = len(work.weights)
    for sub in range(BLOCK // size):
        scale = d * to_float(load(work.scale_codes, sub))
        minimum = d_min * to_float(load(work.minimum_codes, sub))
        gone = scale == 0
        if any_lane(gone):
            inverse, origin = load(work.inverses, sub), load(work.origins, sub)
            for i in range(sub * size, (sub + 1) * size):
                x = load(tile, i)
                kept = found_codes(x, inverse, origin, top, weighted)
                store(codes, i, select(gone, kept, code((x + minimum) / scale, top)))
        else:
            for i in range(sub * size, (sub + 1) * size):
                store(codes, i, code((load(tile, i) + minimum) / scale, top))
