"""Q6_K: 256 values share a float16 scale, 16 an 8-bit one, each is 6 bits.

A value is ``d * s * (l - 32)`` with ``l`` from 0 to 63, ``s`` the signed byte of its sub-block of 16 and ``d``
of the block. A block is 128 bytes with the low four bits of ``l``, 64 with the upper two, 16 scales and ``d``:
210 bytes, 6.56 bits per weight. Value ``i`` of each half of 128 lies as follows: bytes 0 to 63 hold the low
bits of values 0 to 63 in their low nibbles and of 64 to 127 in their high ones; byte ``i`` of the upper 32 holds
two bits each of values ``i``, ``i + 32``, ``i + 64`` and ``i + 96``.

Each sub-block is searched for its scale (:mod:`qexport.codecs.scale_search`), weighted by importance or by its
own squares; the largest of the 16 is mapped to -128, and all values are rounded again to the scales as stored.
The bytes are those of ``quantize_row_q6_K_ref`` and ``quantize_row_q6_K_impl`` in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c. Details that it fixes: a block whose
scales are all below 1e-15 is zero bytes; a sub-block whose stored scale is zero keeps the levels of its search,
which nobody decodes.

Left out: values that are not finite, or too large for a float16 scale; such blocks are counted.
"""

from __future__ import annotations

import numpy as np
import torch

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import half_bits, nearest, value_of_half
from qexport.codecs.lanes import (
    LANES,
    any_lane,
    load,
    select,
    splat,
    splat_int,
    store,
    to_float,
)
from qexport.codecs.scale_search import NO_LEVELS, NOTHING, factors_around, largest, levels_of, search_scale
from qexport.codecs.tiles import is_finite, read_tile, row_bits, scratch, write_blocks

__all__ = ["quantize_into"]

_BLOCK, _SUB, _NBYTES, _TOP = 256, 16, 210, 32
_FACTORS = factors_around(_TOP)
# Words of a packed block: low bits, upper bits, scales, d.
_UPPER, _SCALES, _D, _WORDS = 32, 48, 52, 64


def quantize_into(rows: torch.Tensor, importance: np.ndarray | None, out: np.ndarray) -> int:
    """Fill ``out`` with packed rows; returns how often a value or scale was found that it cannot hold.

    Args:
        rows: ``(n, columns)`` in bfloat16 or float32; columns a multiple of 256.
        importance: float32 ``(columns,)``, or None.
        out: uint8 ``(n, columns / 256 * 210)``.
    """
    weights = np.empty(0, np.float32) if importance is None else np.ascontiguousarray(importance)
    return int(_quantize(*row_bits(rows), weights, _FACTORS, out))


@compiled
def _quantize(
    halves: np.ndarray, words: np.ndarray, importance: np.ndarray, factors: np.ndarray, out: np.ndarray
) -> int:
    tile = scratch(_BLOCK, LANES)
    levels = scratch(_BLOCK, LANES).view(np.int32)
    weights, products = scratch(_SUB, LANES), scratch(_SUB, LANES)
    scales, inverses = scratch(_SUB, LANES), scratch(_SUB, LANES)
    packed = scratch(_WORDS, LANES).view(np.int32)
    rest = scratch(LANES, 16).view(np.uint8)
    bad = 0
    for first in range(0, len(out), LANES):
        for block in range(halves.shape[1] // _BLOCK):
            column = block * _BLOCK
            read_tile(halves, words, first, column, _BLOCK, tile)
            bad += not is_finite(tile)
            for j in range(_SUB):
                for i in range(_SUB):
                    x = load(tile, _SUB * j + i)
                    if len(importance):
                        store(weights, i, splat(importance[column + _SUB * j + i]))
                    else:
                        store(weights, i, x * x)
                scale, inverse = search_scale(tile, _SUB * j, weights, products, factors, _TOP, True)
                store(scales, j, scale)
                store(inverses, j, inverse)
            bad += _store_scales(scales, inverses, packed)
            for j in range(_SUB):
                _store_levels(tile, j, load(scales, j), load(inverses, j), levels)
            _pack_levels(levels, packed)
            write_blocks(packed, rest, out, first, block * _NBYTES, _NBYTES)
    return bad


@compiled
def _store_scales(scales: np.ndarray, inverses: np.ndarray, packed: np.ndarray) -> int:
    """Pack the scales and ``d``; ``scales`` become what a decoder will multiply levels with.

    In a zero block ``inverses`` become NaN, which leaves no levels.
    """
    size, value = largest(scales, 0, _SUB)
    empty = size < NOTHING
    inverse = splat(-128) / value
    half = select(empty, splat_int(0), half_bits(splat(1) / inverse))
    d = value_of_half(half)
    store(packed, _D, half)
    for word in range(_SUB // 4):
        codes = splat_int(0)
        for place in range(4):
            j = 4 * word + place
            code = nearest(inverse * load(scales, j))
            code = select(code > 127, splat_int(127), code)
            code = select(empty, splat_int(0), code) & 0xFF
            codes = codes | (code << (8 * place))
            store(inverses, j, select(empty, splat(NO_LEVELS), load(inverses, j)))
            store(scales, j, d * to_float(select(code > 127, code - 256, code)))
        store(packed, _SCALES + word, codes)
    return int(any_lane((half & 0x7C00) == 0x7C00))


@compiled
def _store_levels(tile, j, step, inverse, levels):
    for i in range(_SUB * j, _SUB * (j + 1)):
        x = load(tile, i)
        level = nearest(x / step)
        level = select(level < -_TOP, splat_int(-_TOP), level)
        level = select(level > _TOP - 1, splat_int(_TOP - 1), level)
        store(levels, i, select(step != 0, level + _TOP, levels_of(x, inverse, _TOP)))


@compiled
def _pack_levels(levels: np.ndarray, packed: np.ndarray) -> None:
    for half in range(2):
        start = 128 * half
        for word in range(16):
            low = splat_int(0)
            for place in range(4):
                i = start + 4 * word + place
                byte = (load(levels, i) & 15) | ((load(levels, i + 64) & 15) << 4)
                low = low | (byte << (8 * place))
            store(packed, 16 * half + word, low)
        for word in range(8):
            upper = splat_int(0)
            for place in range(4):
                i = start + 4 * word + place
                byte = load(levels, i) >> 4
                for quarter in range(1, 4):
                    byte = byte | ((load(levels, i + 32 * quarter) >> 4) << (2 * quarter))
                upper = upper | (byte << (8 * place))
            store(packed, _UPPER + 8 * half + word, upper)
