"""Q6_K: 256 values share a float16 scale, 16 an 8-bit one, each is 6 bits.

A value is ``d * scale * (l - 32)`` with ``l`` from 0 to 63, and a block is stored as

    128 bytes    the lower four bits of ``l``: 64 bytes for each half of 128 values, byte ``i`` of a half
                 holds value ``i`` and, above it, value ``i + 64``
    64 bytes     the upper two: 32 bytes a half, byte ``i`` holds those of values ``i``, ``i + 32``,
                 ``i + 64`` and ``i + 96``
    16 bytes     signed scales, one for 16 values
    d            float16

Each sub-block is searched for its scale (:mod:`qexport.codecs.scale_search`), errors weighted by the column's
importance or, without, by the square of the value. The largest of the 16 scales is mapped to -128, and all
values are rounded again to what was stored.

The bytes are those of ``quantize_row_q6_K_ref`` and ``quantize_row_q6_K_impl`` in
https://github.com/ggml-org/llama.cpp/blob/01243c587feceaa5d6a6c2305535ef2f549c48b8/ggml/src/ggml-quants.c
They fix two details: a block whose scales are all below 1e-15 is all zero bytes; a sub-block whose stored
scale is zero keeps the levels of its search, which decode to zero whatever they are.

Left out: values that are not finite, and blocks whose scale float16 cannot hold; both are counted.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import from_half_bits, half_bits, nearest, signed_code
from qexport.codecs.lanes import LANES, any_lane, load, select, splat, splat_int, store, to_float
from qexport.codecs.scale_search import (
    NO_LEVELS,
    NOTHING,
    factors_around,
    largest,
    levels_of,
    search_scale,
)
from qexport.codecs.tiles import is_finite, read_tile, scratch, write_blocks

_BLOCK, _SUBS, _SIZE, _NBYTES, _TOP = 256, 16, 16, 210, 32
_FACTORS = factors_around(_TOP)
_UPPER, _SCALES, _D = 32, 48, 52  # where words of a packed block begin


def encode(
    type_name: str, halves: np.ndarray, words: np.ndarray, importance: np.ndarray, out: np.ndarray
) -> int:
    """Fill ``out``; the contract is in :mod:`qexport.codecs.native`."""
    return int(_encode(halves, words, importance, _FACTORS, out))


@compiled
def _encode(
    halves: np.ndarray, words: np.ndarray, importance: np.ndarray, factors: np.ndarray, out: np.ndarray
) -> int:
    tile, weights, products = scratch(_BLOCK, LANES), scratch(_SIZE, LANES), scratch(_SIZE, LANES)
    codes = tile.view(np.int32)  # take the place of their values
    scales, inverses = scratch(_SUBS, LANES), scratch(_SUBS, LANES)
    packed, rest = scratch(64, LANES).view(np.int32), scratch(LANES, 16).view(np.uint8)
    bad = 0
    for first in range(0, len(out), LANES):
        for block in range(halves.shape[1] // _BLOCK):
            column = block * _BLOCK
            read_tile(halves, words, first, column, _BLOCK, tile)
            bad += 1 - is_finite(tile)
            for sub in range(_SUBS):
                start = sub * _SIZE
                for i in range(_SIZE):
                    x = load(tile, start + i)
                    if len(importance):
                        store(weights, i, splat(importance[column + start + i]))
                    else:
                        store(weights, i, x * x)
                scale, inverse = search_scale(tile, start, weights, products, factors, _TOP, True)
                store(scales, sub, scale)
                store(inverses, sub, inverse)
            bad += _store_scales(scales, inverses, packed)
            for sub in range(_SUBS):
                scale, inverse = load(scales, sub), load(inverses, sub)
                gone = scale == 0
                for i in range(sub * _SIZE, (sub + 1) * _SIZE):
                    x = load(tile, i)
                    level = signed_code(x / scale, _TOP) + _TOP
                    store(codes, i, select(gone, levels_of(x, inverse, _TOP), level))
            _pack(codes, packed)
            write_blocks(packed, rest, out, first, block * _NBYTES, _NBYTES)
    return bad


@compiled
def _store_scales(scales: np.ndarray, inverses: np.ndarray, packed: np.ndarray) -> int:
    """Pack ``d`` and the scales; ``scales`` become what a reader will multiply levels with.

    Of a zero block no levels are left in ``inverses``.
    """
    size, value = largest(scales, 0, _SUBS)
    empty = size < NOTHING
    inverse = splat(-128) / value
    half = select(empty, 0, half_bits(splat(1) / inverse))
    store(packed, _D, half)
    d = from_half_bits(half)
    for first in range(0, _SUBS, 4):
        word = splat_int(0)
        for place in range(4):
            sub = first + place
            code = nearest(inverse * load(scales, sub))
            code = select(code > 127, 127, code)
            byte = select(empty, 0, code) & 0xFF
            word = word | byte << 8 * place
            store(scales, sub, d * to_float(select(byte > 127, byte - 256, byte)))
            store(inverses, sub, select(empty, NO_LEVELS, load(inverses, sub)))
        store(packed, _SCALES + first // 4, word)
    return int(any_lane((half & 0x7C00) == 0x7C00))


@compiled
def _pack(codes: np.ndarray, packed: np.ndarray) -> None:
    for half in range(2):
        for word in range(16):
            lower = splat_int(0)
            for place in range(4):
                i = 128 * half + 4 * word + place
                byte = load(codes, i) & 15 | (load(codes, i + 64) & 15) << 4
                lower = lower | byte << 8 * place
            store(packed, 16 * half + word, lower)
        for word in range(8):
            upper = splat_int(0)
            for place in range(4):
                for quarter in range(4):
                    bits = load(codes, 128 * half + 32 * quarter + 4 * word + place) >> 4
                    upper = upper | bits << 8 * place + 2 * quarter
            store(packed, _UPPER + 8 * half + word, upper)
