"""The search behind types with a scale and no minimum: Q6_K, and Q3_K, Q4_0 and Q5_0 with importance.

A sub-block becomes ``x = scale * l`` with whole ``l`` from ``-top`` to ``top - 1``. The value of largest
magnitude is mapped to ``-top``, the end that reaches further, and then to 18 places nearby,
``-(top + 0.1 k)`` for ``k`` from -9 to 9. Each gives levels ``l``; for those the scale of least weighted
squared error is ``sum(w x l) / sum(w l l)``, and the error is smallest where
``sum(w x l)**2 / sum(w l l)`` is largest. Two sums over every value, 19 times, are nearly all the time an
encoder takes, which is why they run in lanes (:mod:`qexport.codecs.lanes`).

The oracle is ``make_qx_quants`` with ``rmse_type`` 1 in
https://github.com/ggml-org/llama.cpp/blob/01243c587feceaa5d6a6c2305535ef2f549c48b8/ggml/src/ggml-quants.c
It fixes the order of the sums and of the trials (a later one has to be better), that the first of two equal
magnitudes counts, and that magnitudes below 1e-15 are zero. Levels are not kept but found again
(:func:`levels_of`) from the factor that gave them: they are wanted only by Q4_0 and Q5_0, and where a float16
scale came out as zero.

Left out: the other weightings of ``rmse_type``, which no encoder uses.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import signed_code
from qexport.codecs.lanes import Lanes, absolute, load, select, splat, store, to_float

NOTHING = np.float32(1e-15)
"""Sub-blocks whose values are all smaller have scale zero: GROUP_MAX_EPS."""

NO_LEVELS = np.float32(np.nan)
"""In place of an ``inverse``: all levels are stored as 0."""

_ROUNDER = np.float32(1.5 * 2**23)  # added and taken away again, it rounds to the nearest whole number


def factors_around(top: int) -> np.ndarray:
    """``-top`` and the 18 places around it, in ggml's order, rounded as C rounds float32."""
    nudges = np.array([0, *(k for k in range(-9, 10) if k)], np.float32)
    return -(np.float32(top) + np.float32(0.1) * nudges)


@compiled
def largest(tile: np.ndarray, first: int, count: int) -> tuple[Lanes, Lanes]:
    """Largest magnitude of ``tile[first : first + count]`` and the first value that has it; never a NaN."""
    size, value = splat(0), splat(0)
    for i in range(first, first + count):
        x = load(tile, i)
        larger = absolute(x) > size
        size = select(larger, absolute(x), size)
        value = select(larger, x, value)
    return size, value


@compiled
def levels_of(x: Lanes, inverse: Lanes, top: int) -> Lanes:
    """Levels as int32 from 0 to ``2 * top - 1``; 0, the lowest, where ``inverse`` is NaN."""
    return select(inverse == inverse, signed_code(inverse * x, top) + top, 0)


@compiled
def _sums(
    tile: np.ndarray, first: int, weights: np.ndarray, products: np.ndarray, inverse: Lanes, top: int
) -> tuple[Lanes, Lanes]:
    """``sum(w x l)`` and ``sum(w l l)`` of the levels that ``inverse`` gives.

    ``|inverse * x|`` is at most ``top + 1``, so rounding can stay in float32: signed_code's result as a
    number, in fewer operations.
    """
    low, high = _ROUNDER - np.float32(top), _ROUNDER + np.float32(top - 1)
    sum_xl, sum_l2 = splat(0), splat(0)
    for i in range(len(weights)):
        shifted = inverse * load(tile, first + i) + _ROUNDER
        shifted = select(shifted < low, low, shifted)
        level = select(shifted > high, high, shifted) - _ROUNDER
        sum_xl = sum_xl + load(products, i) * level
        sum_l2 = sum_l2 + load(weights, i) * level * level
    return sum_xl, sum_l2


@compiled
def _sums_of_anything(
    tile: np.ndarray, first: int, weights: np.ndarray, products: np.ndarray, inverse: Lanes, top: int
) -> tuple[Lanes, Lanes]:
    """As :func:`_sums`, for numbers that may be infinite or NaN: those round to zero."""
    sum_xl, sum_l2 = splat(0), splat(0)
    for i in range(len(weights)):
        level = to_float(signed_code(inverse * load(tile, first + i), top))
        sum_xl = sum_xl + load(products, i) * level
        sum_l2 = sum_l2 + load(weights, i) * level * level
    return sum_xl, sum_l2


@compiled
def search_scale(
    tile: np.ndarray,
    first: int,
    weights: np.ndarray,
    products: np.ndarray,
    factors: np.ndarray,
    top: int,
    finite: bool,
) -> tuple[Lanes, Lanes]:
    """The best scale of values ``tile[first : first + n]``, ``n = len(weights)``.

    Args:
        tile: float32 ``(at least first + n, LANES)``.
        weights: float32 ``(n, LANES)``.
        products: float32 scratch ``(n, LANES)``.
        factors: float32, from :func:`factors_around` of ``top``.
        top: levels are ``-top`` to ``top - 1``.
        finite: whether all values are known to be.

    Returns:
        ``scale``, and the ``inverse`` of the best levels, for :func:`levels_of`. Where all values are zero
        or as good as, these are 0 and ``NO_LEVELS``.
    """
    for i in range(len(weights)):
        store(products, i, load(weights, i) * load(tile, first + i))
    size, value = largest(tile, first, len(weights))
    scale, best, inverse = splat(0), splat(0), splat(0)
    for k in range(len(factors)):
        trial = splat(factors[k]) / value
        if finite:
            sum_xl, sum_l2 = _sums(tile, first, weights, products, trial, top)
        else:
            sum_xl, sum_l2 = _sums_of_anything(tile, first, weights, products, trial, top)
        ratio = sum_xl / sum_l2
        if k == 0:  # what the others have to beat, whatever it is
            scale = select(sum_l2 != 0, ratio, 0)
            best = scale * sum_xl
            inverse = trial
        else:
            better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
            scale = select(better, ratio, scale)
            best = select(better, ratio * sum_xl, best)
            inverse = select(better, trial, inverse)
    empty = size < NOTHING
    return select(empty, 0, scale), select(empty, NO_LEVELS, inverse)
