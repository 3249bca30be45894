"""Q3_K: 256 values share a float16 scale, 16 a 6-bit one, each is 3 bits.

A value is ``d * (scale - 32) * (l - 4)`` with ``l`` from 0 to 7, and a block is stored as

    32 bytes     the upper bits of ``l``: bit ``k`` of byte ``i`` is that of value ``i + 32 * k``
    64 bytes     the lower two: 32 bytes for each half of 128 values, byte ``i`` of a half holds values ``i``,
                 ``i + 32``, ``i + 64`` and ``i + 96``
    12 bytes     sixteen scales of 6 bits: bytes 0-7 hold the lower four of scales 0-7 and, above them, of
                 scales 8-15; byte ``8 + i`` the upper two of ``i``, ``i + 4``, ``i + 8`` and ``i + 12``
    d            float16

ggml has two quite different searches for it. Without importance, sub-blocks are descended level by level
(:mod:`qexport.codecs.level_descent`) and the largest scale of a block is mapped to -32. With importance, a
value's weight is the column's times ``sqrt(sigma2 + x * x)``, ``sigma2`` twice the mean square of the block;
scales are searched as those of Q6_K are (:mod:`qexport.codecs.scale_search`), and then the 16 scales are
themselves searched that way, each with the sum of its weights. Either way all values are rounded again to
the scales as stored; where such a scale is zero, the levels of the search stay, which decode to zero whatever
they are.

The bytes are those of ``quantize_row_q3_K_ref`` and ``quantize_row_q3_K_impl`` in
https://github.com/ggml-org/llama.cpp/blob/01243c587feceaa5d6a6c2305535ef2f549c48b8/ggml/src/ggml-quants.c

Left out: values that are not finite, and blocks whose scale float16 cannot hold; both are counted.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import from_half_bits, half_bits, signed_code
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
from qexport.codecs.level_descent import descend
from qexport.codecs.scale_search import factors_around, largest, levels_of, search_scale
from qexport.codecs.tiles import is_finite, read_tile, scratch, write_blocks

_BLOCK, _SUBS, _SIZE, _NBYTES = 256, 16, 16, 110
_TOP, _SCALE_TOP = 4, 32
_FACTORS, _SCALE_FACTORS = factors_around(_TOP), factors_around(_SCALE_TOP)
_LOWER, _SCALES, _D = 8, 24, 27  # where words of a packed block begin


def encode(
    type_name: str, halves: np.ndarray, words: np.ndarray, importance: np.ndarray, out: np.ndarray
) -> int:
    """Fill ``out``; the contract is in :mod:`qexport.codecs.native`."""
    return int(_encode(halves, words, importance, _FACTORS, _SCALE_FACTORS, out))


@compiled
def _encode(
    halves: np.ndarray,
    words: np.ndarray,
    importance: np.ndarray,
    factors: np.ndarray,
    scale_factors: np.ndarray,
    out: np.ndarray,
) -> int:
    tile, codes = scratch(_BLOCK, LANES), scratch(_BLOCK, LANES).view(np.int32)
    weights, products, totals = scratch(_SIZE, LANES), scratch(_SIZE, LANES), scratch(_SUBS, LANES)
    levels, scales = scratch(2 * _SIZE, LANES), scratch(_SUBS, LANES)
    scale_codes = scratch(_SUBS, LANES).view(np.int32)
    packed, rest = scratch(32, LANES).view(np.int32), scratch(LANES, 16).view(np.uint8)
    bad = 0
    for first in range(0, len(out), LANES):
        for block in range(halves.shape[1] // _BLOCK):
            column = block * _BLOCK
            read_tile(halves, words, first, column, _BLOCK, tile)
            bad += 1 - is_finite(tile)
            if len(importance):
                sigma2 = _sum_of_squares(tile) * 2 / _BLOCK  # in this order: huge values overflow
                for sub in range(_SUBS):
                    start = sub * _SIZE
                    total = splat(0)
                    for i in range(_SIZE):
                        x = load(tile, start + i)
                        weight = importance[column + start + i] * root(sigma2 + x * x)
                        total = total + weight
                        store(weights, i, weight)
                    store(totals, sub, total)
                    scale, inverse = search_scale(tile, start, weights, products, factors, _TOP, True)
                    store(scales, sub, scale)
                    for i in range(start, start + _SIZE):
                        store(codes, i, levels_of(load(tile, i), inverse, _TOP))
                # Degenerate sub-blocks may have left scales that are no numbers.
                d, inverse = search_scale(scales, 0, totals, products, scale_factors, _SCALE_TOP, False)
                for sub in range(_SUBS):
                    store(scale_codes, sub, levels_of(load(scales, sub), inverse, _SCALE_TOP))
                half = half_bits(d)
            else:
                for sub in range(0, _SUBS, 2):
                    one, two = descend(tile, sub * _SIZE, levels, codes)
                    store(scales, sub, one)
                    store(scales, sub + 1, two)
                half = _round_scales(scales, scale_codes)
            bad += int(any_lane((half & 0x7C00) == 0x7C00))
            store(packed, _D, half)
            _pack_scales(scale_codes, packed)
            _round_again(tile, codes, scale_codes, from_half_bits(half))
            _pack(codes, packed)
            write_blocks(packed, rest, out, first, block * _NBYTES, _NBYTES)
    return bad


@compiled
def _sum_of_squares(tile: np.ndarray) -> Lanes:
    total = splat(0)
    for i in range(_BLOCK):
        x = load(tile, i)
        total = total + x * x
    return total


@compiled
def _round_scales(scales: np.ndarray, scale_codes: np.ndarray) -> Lanes:
    """Codes of the scales, 0 for the largest; returns the bits of ``d``."""
    size, value = largest(scales, 0, _SUBS)
    inverse = splat(-_SCALE_TOP) / value
    empty = size == 0
    for sub in range(_SUBS):
        code = signed_code(inverse * load(scales, sub), _SCALE_TOP)
        store(scale_codes, sub, select(empty, 0, code + _SCALE_TOP))
    return select(empty, 0, half_bits(splat(1) / inverse))


@compiled
def _round_again(tile: np.ndarray, codes: np.ndarray, scale_codes: np.ndarray, d: Lanes) -> None:
    """Round all values to the scales as stored; ``codes`` are those of the search before."""
    for sub in range(_SUBS):
        scale = d * to_float(load(scale_codes, sub) - _SCALE_TOP)
        gone = scale == 0
        for i in range(sub * _SIZE, (sub + 1) * _SIZE):
            code = signed_code(load(tile, i) / scale, _TOP) + _TOP
            store(codes, i, select(gone, load(codes, i), code))


@compiled
def _pack_scales(scale_codes: np.ndarray, packed: np.ndarray) -> None:
    upper = splat_int(0)
    for place in range(4):
        for quarter in range(4):
            upper = upper | load(scale_codes, place + 4 * quarter) >> 4 << 8 * place + 2 * quarter
    store(packed, _SCALES + 2, upper)
    for word in range(2):
        lower = splat_int(0)
        for place in range(4):
            sub = 4 * word + place
            byte = load(scale_codes, sub) & 15 | (load(scale_codes, sub + 8) & 15) << 4
            lower = lower | byte << 8 * place
        store(packed, _SCALES + word, lower)


@compiled
def _pack(codes: np.ndarray, packed: np.ndarray) -> None:
    for word in range(8):
        upper = splat_int(0)
        for place in range(4):
            for bit in range(8):
                upper = upper | load(codes, 32 * bit + 4 * word + place) >> 2 << 8 * place + bit
        store(packed, word, upper)
        for half in range(2):
            lower = splat_int(0)
            for place in range(4):
                for quarter in range(4):
                    bits = load(codes, 128 * half + 32 * quarter + 4 * word + place) & 3
                    lower = lower | bits << 8 * place + 2 * quarter
            store(packed, _LOWER + 8 * half + word, lower)
