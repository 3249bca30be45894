"""The search behind types with a scale and a minimum: Q2_K, Q4_K, Q5_K, and Q4_1 and Q5_1 with importance.

A sub-block of 16 or 32 values becomes ``x = scale * l + low`` with whole ``l`` from 0 to ``top``. ggml
tries a few dozen steps around ``(max - low) / top``. Each gives levels ``l``; for those the scale and
minimum of least weighted squared error follow from five sums; then the error itself is summed, and the
best is kept. Later trials start at the best minimum so far, so their order matters. 37 trials of two sums
over every value are nearly all the time an encoder takes, which is why they run in lanes
(:mod:`qexport.codecs.lanes`).

With importance the scales of a super-block are themselves fitted to 4 or 6 bits under the weights of their
sub-blocks (:func:`fit_scales`).

The oracle is ``make_qkx2_quants`` without importance, ``make_qkx3_quants`` with it, and
``make_qp_quants``, in
https://github.com/ggml-org/llama.cpp/blob/01243c587feceaa5d6a6c2305535ef2f549c48b8/ggml/src/ggml-quants.c
The first two are one search, but for a quotient that is beyond all levels: releases before that one
wrapped it around in both. Levels are not kept but found again (:func:`found_codes`): they are wanted only
where the float16 scale came out as zero, and by Q4_1 and Q5_1."""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import code, nearest, rounded, within
from qexport.codecs.lanes import (
    Lanes,
    absolute,
    all_lanes,
    any_lane,
    load,
    select,
    splat,
    store,
    to_float,
)

_NEARBY = np.float32(2**22 - 1)


def steps_around(top: int, lowest: float, spacing: float, last: int) -> np.ndarray:
    """The trials: ``lowest + spacing * i + top`` for ``i`` up to ``last``, rounded as C rounds float32."""
    i = np.arange(last + 1, dtype=np.float32)
    return np.float32(lowest) + np.float32(spacing) * i + np.float32(top)


@compiled
def search_range(
    tile: np.ndarray,
    first: int,
    weights: np.ndarray,
    levels: np.ndarray,
    steps: np.ndarray,
    top: int,
    by_magnitude: bool,
    limited: bool,
) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """The best scale and minimum of values ``tile[first : first + n]``, ``n = len(weights)``.

    Args:
        tile: float32 ``(at least first + n, LANES)``.
        weights: float32 ``(n, LANES)``.
        levels: float32 scratch ``(n, LANES)``.
        steps: float32, from :func:`steps_around`.
        top: the highest level.
        by_magnitude: weigh magnitudes of errors, not squares.
        limited: trials limit a quotient before they round it (``make_qkx3_quants``), not after.

    Returns:
        ``scale``, ``-low``, and the ``inverse`` and ``origin`` that :func:`found_codes` takes.
    """
    n = len(weights)
    low = load(tile, first)
    high = low
    sum_w = load(weights, 0)
    sum_x = sum_w * low
    for i in range(1, n):
        x, w = load(tile, first + i), load(weights, i)
        low = select(x < low, x, low)
        high = select(x > high, x, high)
        sum_w = sum_w + w
        sum_x = sum_x + w * x
    lowest = low
    low = select(low > 0, 0, low)
    flat, lively = high <= low, high > low
    inverse = splat(top) / (high - low)
    scale = splat(1) / inverse
    least = splat(0)
    for i in range(n):
        x = load(tile, first + i)
        error = scale * to_float(code(inverse * (x - low), top)) + low - x
        error = absolute(error) if by_magnitude else error * error
        least = least + load(weights, i) * error
    origin = low
    # An extent too small to invert has given zeros, which infinity would not when it is limited first.
    inverse = select(inverse < np.float32(np.inf), inverse, 0)

    for step in steps:
        trial = select(flat, 0, splat(step) / (high - low))
        # The best minimum so far may lie anywhere, but nearly always the quotients are small.
        reach = absolute(trial * (high - low)) < _NEARBY
        nearby = limited or all_lanes(reach & (absolute(trial * (lowest - low)) < _NEARBY))
        sum_l = splat(0)
        sum_l2 = splat(0)
        sum_xl = splat(0)
        for i in range(n):
            x = load(tile, first + i)
            value = trial * (x - low)
            found = rounded(within(value, top)) if nearby else to_float(code(value, top))
            store(levels, i, found)
            weighted = load(weights, i) * found
            sum_l = sum_l + weighted
            sum_l2 = sum_l2 + weighted * found
            sum_xl = sum_xl + weighted * x
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = new_low > 0
        new_scale = select(above, sum_xl / sum_l2, new_scale)
        new_low = select(above, 0, new_low)
        total = splat(0)
        for i in range(n):
            error = new_scale * load(levels, i) + new_low - load(tile, first + i)
            error = absolute(error) if by_magnitude else error * error
            total = total + load(weights, i) * error
        better = (determinant > 0) & (total < least) & lively
        origin = select(better, low, origin)
        inverse = select(better, trial, inverse)
        least = select(better, total, least)
        scale = select(better, new_scale, scale)
        low = select(better, new_low, low)

    # A sub-block without extent: all levels zero.
    scale = select(flat, 0, scale)
    inverse = select(flat, 0, inverse)
    origin = select(flat, 0, origin)
    return scale, -low, inverse, origin


@compiled
def found_codes(x: Lanes, inverse: Lanes, origin: Lanes, top: int, limited: bool) -> Lanes:
    """The levels that a search ended with, of one value of each lane, as int32."""
    value = inverse * (x - origin)
    return nearest(within(value, top)) if limited else code(value, top)


@compiled
def fit_scales(values: np.ndarray, weights: np.ndarray, top: int, codes: np.ndarray) -> Lanes:
    """One step for all of ``values``, so that ``step * codes`` has the least weighted squared error.

    Nine steps are tried, the best rounding is taken, and then single codes are moved while that helps, five
    rounds at most. Codes are bytes in ggml: a negative one, from a degenerate search, wraps.

    Args:
        values, weights: float32 ``(n, LANES)``.
        top: the highest code.
        codes: int32 ``(n, LANES)``, filled.

    Returns:
        The step.
    """
    n = len(values)
    high = splat(0)
    for i in range(n):
        value = load(values, i)
        high = select(high > value, high, value)
    empty = high < np.float32(1e-15)  # ggml's idea of all zero

    inverse = splat(top) / high
    scale = splat(1) / inverse
    least = splat(0)
    for i in range(n):
        value = load(values, i)
        error = value - scale * to_float(nearest(inverse * value) & 0xFF)
        least = least + load(weights, i) * error * error
    for trial in range(-4, 5):
        if trial == 0:
            continue
        new_inverse = splat(np.float32(0.1) * np.float32(trial) + np.float32(top)) / high
        new_scale = splat(1) / new_inverse
        total = splat(0)
        for i in range(n):
            value = load(values, i)
            code = nearest(new_inverse * value)
            error = value - new_scale * to_float(select(code > top, top, code))
            total = total + load(weights, i) * error * error
        better = total < least
        least = select(better, total, least)
        inverse = select(better, new_inverse, inverse)

    sum_vl = splat(0)
    sum_l2 = splat(0)
    for i in range(n):
        value, weight = load(values, i), load(weights, i)
        code = nearest(inverse * value)
        code = select(code > top, top, code)
        store(codes, i, code & 0xFF)
        signed = to_float(code)
        sum_vl = sum_vl + weight * value * signed
        sum_l2 = sum_l2 + weight * signed * signed
    for _ in range(5):
        moved = empty & (high > 0) & (high < 0)  # nowhere yet
        for i in range(n):
            value, weight, code = load(values, i), load(weights, i), load(codes, i)
            old = to_float(code)
            rest_vl = sum_vl - weight * value * old
            rest_l2 = sum_l2 - weight * old * old
            wanted = nearest(value * rest_l2 / rest_vl)
            wanted = select(wanted > top, top, wanted)
            new = to_float(wanted)
            new_vl = rest_vl + weight * value * new
            new_l2 = rest_l2 + weight * new * new
            better = (rest_vl > 0) & (rest_l2 > 0) & (wanted != code)
            better = better & (new_vl * new_vl * sum_l2 > sum_vl * sum_vl * new_l2)
            store(codes, i, select(better, wanted & 0xFF, code))
            sum_vl = select(better, new_vl, sum_vl)
            sum_l2 = select(better, new_l2, sum_l2)
            moved = moved | better
        if not any_lane(moved):
            break
    for i in range(n):
        store(codes, i, select(empty, 0, load(codes, i)))
    step = select(sum_l2 > 0, sum_vl / sum_l2, 0)
    return select(empty, 0, step)


@compiled
def round_scales(values: np.ndarray, top: int, codes: np.ndarray) -> Lanes:
    """The same without importance: ``codes`` are ``values`` in steps of ``largest / top``."""
    high = splat(0)
    for i in range(len(values)):
        value = load(values, i)
        high = select(value > high, value, high)
    inverse = select(high > 0, splat(top) / high, 0)
    for i in range(len(values)):
        store(codes, i, nearest(inverse * load(values, i)) & 0xFF)
    return select(high > 0, high / top, 0)
