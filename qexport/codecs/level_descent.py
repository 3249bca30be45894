"""How ggml finds the levels of Q3_K without importance: one value after the other, as long as it helps.

A sub-block of 16 becomes ``x = scale * l`` with whole ``l`` from -4 to 3. It starts from the levels that map
the value of largest magnitude to -4. Then every value in turn gets the level that is best beside all others
as they are, if the error, weighted by the squares of the values, really falls; this is done five times over,
or until no level moves. Two sums describe the state, ``sum(w x l)`` and ``sum(w l l)``: their quotient is the
scale, and the error is smallest where ``sum(w x l)**2 / sum(w l l)`` is largest.

The oracle is ``make_q3_quants`` in
https://github.com/ggml-org/llama.cpp/blob/01243c587feceaa5d6a6c2305535ef2f549c48b8/ggml/src/ggml-quants.c
In lanes a sub-block cannot stop by itself, but one that has come to rest stays as it is: the next round finds
the same sums and the same levels. Every step waits for a division in the one before, so two sub-blocks take
turns.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import nearest, signed_code
from qexport.codecs.lanes import Lanes, any_lane, load, select, splat, store, to_float
from qexport.codecs.scale_search import NOTHING, largest

_SIZE, _TOP, _ROUNDS = 16, 4, 5


@compiled
def descend(tile: np.ndarray, first: int, levels: np.ndarray, codes: np.ndarray) -> tuple[Lanes, Lanes]:
    """Levels and scales of values ``first`` to ``first + 15`` and of the 16 that follow.

    Args:
        tile: float32 ``(at least first + 32, LANES)``.
        levels: float32 scratch ``(32, LANES)``.
        codes: int32 like ``tile``; gets levels from 0 to 7, and 0 where all values are as good as zero.

    Returns:
        The two scales.
    """
    second = first + _SIZE
    xl_1, l2_1, empty_1 = _start(tile, first, levels, 0)
    xl_2, l2_2, empty_2 = _start(tile, second, levels, _SIZE)
    for _ in range(_ROUNDS):
        moved = splat(0) > 0
        for i in range(_SIZE):
            level, xl_1, l2_1, new = _move(load(tile, first + i), load(levels, i), xl_1, l2_1)
            store(levels, i, level)
            moved = moved | new
            level, xl_2, l2_2, new = _move(load(tile, second + i), load(levels, _SIZE + i), xl_2, l2_2)
            store(levels, _SIZE + i, level)
            moved = moved | new
        if not any_lane(moved):
            break
    for i in range(_SIZE):
        store(codes, first + i, select(empty_1, 0, nearest(load(levels, i)) + _TOP))
        store(codes, second + i, select(empty_2, 0, nearest(load(levels, _SIZE + i)) + _TOP))
    return _quotient(xl_1, l2_1, empty_1), _quotient(xl_2, l2_2, empty_2)


@compiled
def _start(tile: np.ndarray, first: int, levels: np.ndarray, to: int) -> tuple[Lanes, Lanes, Lanes]:
    """Fill ``levels`` with the first ones; returns their sums, and where there is nothing to do."""
    size, value = largest(tile, first, _SIZE)
    inverse = splat(-_TOP) / value
    sum_xl, sum_l2 = splat(0), splat(0)
    for i in range(_SIZE):
        x = load(tile, first + i)
        level = to_float(signed_code(inverse * x, _TOP))
        store(levels, to + i, level)
        weight = x * x
        sum_xl = sum_xl + weight * x * level
        sum_l2 = sum_l2 + weight * level * level
    return sum_xl, sum_l2, size < NOTHING


@compiled
def _move(x: Lanes, level: Lanes, sum_xl: Lanes, sum_l2: Lanes) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """The best level of ``x`` beside all others, the sums with it, and where it is another than before."""
    weight = x * x
    rest_xl = sum_xl - weight * x * level
    rest_l2 = sum_l2 - weight * level * level
    new = to_float(signed_code(x * rest_l2 / rest_xl, _TOP))
    new_xl = rest_xl + weight * x * new
    new_l2 = rest_l2 + weight * new * new
    better = (rest_xl > 0) & (new != level) & (new_l2 > 0)
    better = better & (new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2)
    return (
        select(better, new, level),
        select(better, new_xl, sum_xl),
        select(better, new_l2, sum_l2),
        better,
    )


@compiled
def _quotient(sum_xl: Lanes, sum_l2: Lanes, empty: Lanes) -> Lanes:
    scale = select(sum_l2 > 0, sum_xl / sum_l2, 0)
    return select(empty, 0, scale)
