"""Q3_K: 256 values share a float16 scale, 16 a 6-bit one, each is 3 bits.

A value is ``d * (s - 32) * (l - 4)`` with ``l`` from 0 to 7, ``s`` (0 to 63) that of its sub-block of 16 and ``d``
that of the block. A block is 32 bytes with the upper bit of every ``l``, 64 with the lower two, 12 bytes of
scales and ``d``: 110 bytes, 3.44 bits per weight. Bit ``k`` of mask byte ``i`` belongs to value ``i + 32 k``; byte
``i`` of a half's lower bits holds those of its values ``i``, ``i + 32``, ``i + 64`` and ``i + 96``. Of the scales,
bytes 0 to 7 hold the low nibbles of 0 to 7 and, above them, of 8 to 15; each of the last four bytes has the
upper two bits of four scales that are 4 apart.

The bytes are those of ggml, which has two quite different searches
(``quantize_row_q3_K_ref`` and ``quantize_row_q3_K_impl`` in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c):

- Without importance every sub-block is descended: starting from the levels that map its largest value to -4,
  one value after the other takes the level that is best for all others as they are, for five rounds or until
  none moves (``make_q3_quants``; weights are squares). The largest scale of a block is mapped to -32.
- With importance a value's weight is ``importance * sqrt(sigma2 + x * x)``, ``sigma2`` twice the mean square
  of the block, and the sub-blocks are searched as those of Q6_K are (:mod:`qexport.codecs.scale_search`). The
  16 scales are then searched the same way, each with the sum of its weights.

All values are rounded again to the scales as stored; where such a scale is zero, the levels of the search stay.

Left out: values that are not finite, or too large for a float16 scale; such blocks are counted.
"""

from __future__ import annotations

import numpy as np
import torch

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import half_bits, nearest, value_of_half
from qexport.codecs.lanes import (
    LANES,
    Lanes,
    any_lane,
    load,
    root,
    select,
    splat,
    splat_int,
    store,
    to_float,
)
from qexport.codecs.scale_search import NOTHING, factors_around, largest, levels_of, search_scale
from qexport.codecs.tiles import is_finite, read_tile, row_bits, scratch, write_blocks

__all__ = ["quantize_into"]

_BLOCK, _SUB, _NBYTES, _TOP = 256, 16, 110, 4
_SCALE_TOP = 32
_FACTORS, _SCALE_FACTORS = factors_around(_TOP), factors_around(_SCALE_TOP)
_ROUNDS = 5
# Words of a packed block: mask, lower bits, scales, d.
_LOWER, _SCALES, _D, _WORDS = 8, 24, 27, 32


def quantize_into(rows: torch.Tensor, importance: np.ndarray | None, out: np.ndarray) -> int:
    """Fill ``out`` with packed rows; returns how often a value or scale was found that it cannot hold.

    Args:
        rows: ``(n, columns)`` in bfloat16 or float32; columns a multiple of 256.
        importance: float32 ``(columns,)``, or None.
        out: uint8 ``(n, columns / 256 * 110)``.
    """
    if importance is None:
        return int(_quantize(*row_bits(rows), out))
    weights = np.ascontiguousarray(importance)
    return int(_quantize_weighted(*row_bits(rows), weights, _FACTORS, _SCALE_FACTORS, out))


@compiled
def _quantize(halves: np.ndarray, words: np.ndarray, out: np.ndarray) -> int:
    tile = scratch(_BLOCK, LANES)
    levels = scratch(_BLOCK, LANES).view(np.int32)
    moving, scales = scratch(2 * _SUB, LANES), scratch(_SUB, LANES)
    codes = scratch(_SUB, LANES).view(np.int32)
    packed = scratch(_WORDS, LANES).view(np.int32)
    rest = scratch(LANES, 16).view(np.uint8)
    bad = 0
    for first in range(0, len(out), LANES):
        for block in range(halves.shape[1] // _BLOCK):
            read_tile(halves, words, first, block * _BLOCK, _BLOCK, tile)
            bad += not is_finite(tile)
            for j in range(0, _SUB, 2):
                one, two = _descend(tile, _SUB * j, moving, levels)
                store(scales, j, one)
                store(scales, j + 1, two)
            half = _largest_to_lowest(scales, codes)
            bad += _finish(tile, levels, codes, half, packed)
            write_blocks(packed, rest, out, first, block * _NBYTES, _NBYTES)
    return bad


@compiled
def _quantize_weighted(
    halves: np.ndarray,
    words: np.ndarray,
    importance: np.ndarray,
    factors: np.ndarray,
    scale_factors: np.ndarray,
    out: np.ndarray,
) -> int:
    tile = scratch(_BLOCK, LANES)
    levels = scratch(_BLOCK, LANES).view(np.int32)
    weights, products = scratch(_SUB, LANES), scratch(_SUB, LANES)
    scales, sums = scratch(_SUB, LANES), scratch(_SUB, LANES)
    codes = scratch(_SUB, LANES).view(np.int32)
    packed = scratch(_WORDS, LANES).view(np.int32)
    rest = scratch(LANES, 16).view(np.uint8)
    bad = 0
    for first in range(0, len(out), LANES):
        for block in range(halves.shape[1] // _BLOCK):
            column = block * _BLOCK
            read_tile(halves, words, first, column, _BLOCK, tile)
            bad += not is_finite(tile)
            squares = splat(0)
            for i in range(_BLOCK):
                x = load(tile, i)
                squares = squares + x * x
            sigma2 = squares * 2 / _BLOCK
            for j in range(_SUB):
                start = _SUB * j
                total = splat(0)
                for i in range(_SUB):
                    x = load(tile, start + i)
                    weight = root(sigma2 + x * x) * importance[column + start + i]
                    store(weights, i, weight)
                    total = total + weight
                scale, inverse = search_scale(tile, start, weights, products, factors, _TOP, True)
                for i in range(start, start + _SUB):
                    store(levels, i, levels_of(load(tile, i), inverse, _TOP))
                store(scales, j, scale)
                store(sums, j, total)
            d, inverse = search_scale(scales, 0, sums, products, scale_factors, _SCALE_TOP, False)
            for j in range(_SUB):
                store(codes, j, levels_of(load(scales, j), inverse, _SCALE_TOP))
            bad += _finish(tile, levels, codes, half_bits(d), packed)
            write_blocks(packed, rest, out, first, block * _NBYTES, _NBYTES)
    return bad


@compiled
def _within(level: Lanes, top: int) -> Lanes:
    level = select(level < -top, splat_int(-top), level)
    return select(level > top - 1, splat_int(top - 1), level)


@compiled
def _start(tile: np.ndarray, first: int, moving: np.ndarray, to: int) -> tuple[Lanes, Lanes, Lanes]:
    """Levels that map the largest value to -4, their two sums, and where there is nothing to do."""
    size, value = largest(tile, first, _SUB)
    inverse = splat(-_TOP) / value
    sum_xl, sum_l2 = splat(0), splat(0)
    for i in range(_SUB):
        x = load(tile, first + i)
        level = to_float(_within(nearest(inverse * x), _TOP))
        store(moving, to + i, level)
        weight = x * x
        sum_xl = sum_xl + weight * x * level
        sum_l2 = sum_l2 + weight * level * level
    return sum_xl, sum_l2, size < NOTHING


@compiled
def _move(x: Lanes, level: Lanes, sum_xl: Lanes, sum_l2: Lanes) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """The best level of ``x`` beside all others as they are, the sums with it, and where it is new."""
    weight = x * x
    rest_xl = sum_xl - weight * x * level
    rest_l2 = sum_l2 - weight * level * level
    new = to_float(_within(nearest(x * rest_l2 / rest_xl), _TOP))
    new_xl = rest_xl + weight * x * new
    new_l2 = rest_l2 + weight * new * new
    better = (rest_xl > 0) & (new != level) & (new_l2 > 0)
    better = better & (new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2)
    return select(better, new, level), select(better, new_xl, sum_xl), select(better, new_l2, sum_l2), better


@compiled
def _descend(tile: np.ndarray, first: int, moving: np.ndarray, levels: np.ndarray) -> tuple[Lanes, Lanes]:
    """Scales of two sub-blocks; their levels, 0 to 7, go to ``levels``.

    Every step waits for the one before, so a second sub-block is worked on meanwhile. A lane that has come to
    rest stays as it is, however many rounds the others need.
    """
    second = first + _SUB
    xl_1, l2_1, empty_1 = _start(tile, first, moving, 0)
    xl_2, l2_2, empty_2 = _start(tile, second, moving, _SUB)
    for _ in range(_ROUNDS):
        moved = empty_1 & (l2_1 != l2_1) & (l2_1 == l2_1)  # nowhere yet
        for i in range(_SUB):
            level, xl_1, l2_1, new = _move(load(tile, first + i), load(moving, i), xl_1, l2_1)
            store(moving, i, level)
            moved = moved | new
            level, xl_2, l2_2, new = _move(load(tile, second + i), load(moving, _SUB + i), xl_2, l2_2)
            store(moving, _SUB + i, level)
            moved = moved | new
        if not any_lane(moved):
            break
    for i in range(_SUB):
        level = nearest(load(moving, i)) + _TOP
        store(levels, first + i, select(empty_1, splat_int(0), level))
        level = nearest(load(moving, _SUB + i)) + _TOP
        store(levels, second + i, select(empty_2, splat_int(0), level))
    scale_1 = select(l2_1 > 0, xl_1 / l2_1, splat(0))
    scale_2 = select(l2_2 > 0, xl_2 / l2_2, splat(0))
    return select(empty_1, splat(0), scale_1), select(empty_2, splat(0), scale_2)


@compiled
def _largest_to_lowest(scales: np.ndarray, codes: np.ndarray) -> Lanes:
    """Codes 0 to 63 of the scales, the largest gets 0, which means -32; returns the bits of ``d``."""
    size, value = largest(scales, 0, _SUB)
    inverse = splat(-_SCALE_TOP) / value
    empty = size == 0
    for j in range(_SUB):
        code = nearest(inverse * load(scales, j))
        code = ((code & 0xFF) ^ 0x80) - 0x80  # ggml keeps it in a byte before it clamps
        store(codes, j, select(empty, splat_int(0), _within(code, _SCALE_TOP) + _SCALE_TOP))
    return select(empty, splat_int(0), half_bits(splat(1) / inverse))


@compiled
def _finish(
    tile: np.ndarray, levels: np.ndarray, codes: np.ndarray, half: Lanes, packed: np.ndarray
) -> int:
    """Round all values to the scales as stored and pack; ``levels`` are those of the search."""
    d = value_of_half(half)
    for j in range(_SUB):
        step = d * to_float(load(codes, j) - _SCALE_TOP)
        kept = step == 0
        for i in range(_SUB * j, _SUB * (j + 1)):
            level = _within(nearest(load(tile, i) / step), _TOP) + _TOP
            store(levels, i, select(kept, load(levels, i), level))

    for word in range(_LOWER):
        mask = splat_int(0)
        for place in range(4):
            i = 4 * word + place
            for bit in range(8):
                mask = mask | ((load(levels, i + 32 * bit) >> 2) << (8 * place + bit))
        store(packed, word, mask)
    for half_block in range(2):
        for word in range(8):
            lower = splat_int(0)
            for place in range(4):
                i = 128 * half_block + 4 * word + place
                for quarter in range(4):
                    lower = lower | ((load(levels, i + 32 * quarter) & 3) << (8 * place + 2 * quarter))
            store(packed, _LOWER + 8 * half_block + word, lower)
    for word in range(2):
        nibbles = splat_int(0)
        for place in range(4):
            j = 4 * word + place
            byte = (load(codes, j) & 15) | ((load(codes, j + 8) & 15) << 4)
            nibbles = nibbles | (byte << (8 * place))
        store(packed, _SCALES + word, nibbles)
    upper = splat_int(0)
    for place in range(4):
        for quarter in range(4):
            upper = upper | ((load(codes, place + 4 * quarter) >> 4) << (8 * place + 2 * quarter))
    store(packed, _SCALES + 2, upper)
    store(packed, _D, half)
    return int(any_lane((half & 0x7C00) == 0x7C00))
