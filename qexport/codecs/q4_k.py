"""Q4_K and Q5_K: 256 values in eight sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum.

A value is ``d * scale * l - dmin * minimum`` with ``l`` of 4 or 5 bits, and a block is stored as

    d, dmin      float16 each
    12 bytes     eight scales and eight minima of 6 bits: bytes 0-3 and 4-7 hold those of sub-blocks 0-3 in
                 their low six bits and the upper two bits of sub-blocks 4-7, bytes 8-11 their lower four
    32 bytes     Q5_K only: bit ``j`` of byte ``i`` is the fifth bit of value ``i`` of sub-block ``j``
    128 bytes    four bits a value: byte ``32 * p + i`` holds value ``i`` of sub-blocks ``2 p`` and ``2 p + 1``

Each sub-block is searched (:mod:`qexport.codecs.range_search`), its scale and minimum are rounded to 6 bits of
the largest, or fitted to them with importance, and the values are rounded once more with what was stored. How
much an error counts: with importance the column's times ``sqrt(sigma2 + x * x)``, ``sigma2`` twice the mean
square of the block; without it the sub-block's root mean square plus ``|x|``.

The bytes are those of ``quantize_row_q4_K_ref``, ``quantize_row_q4_K_impl`` and their like for Q5_K in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c. The same kernel serves both types,
with and without importance, bfloat16 and float32: it is compiled once.

Left out: values that are not finite, and blocks whose scales float16 cannot hold; both are counted.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import code, from_half_bits, half_bits
from qexport.codecs.lanes import (
    LANES,
    absolute,
    any_lane,
    load,
    root,
    select,
    splat,
    splat_int,
    store,
    to_float,
)
from qexport.codecs.range_search import fit_scales, round_scales, search_range, steps_around
from qexport.codecs.tiles import NOT_FINITE, read_tile, scratch, write_blocks

__all__ = ["STEPS", "encode_blocks"]

STEPS = {
    ("Q4_K", False): steps_around(15, -1.0, 0.1, 20),
    ("Q4_K", True): steps_around(15, -0.9, 0.05, 36),
    ("Q5_K", False): steps_around(31, -0.5, 0.1, 15),
    ("Q5_K", True): steps_around(31, -0.9, 0.05, 36),
}
"""The trials of each search, by type and whether there is importance."""

_SUBS, _SIZE, _BLOCK = 8, 32, 256
_TOP_CODE = 63


@compiled
def _pack_scales(scales: np.ndarray, minima: np.ndarray, packed: np.ndarray, top: int) -> None:
    """Words 1 to 3 of the block; ``scales`` and ``minima`` become what a reader will find there.

    The same numbers, but where a degenerate search has left a negative scale: ggml lets all eight bits of
    such a code into the block for Q4_K with importance, and takes 63 for it otherwise.
    """
    for first in range(3):
        word = splat_int(0)
        for j in range(4):
            if first == 0:
                byte = load(scales, j) | load(scales, j + 4) >> 4 << 6
            elif first == 1:
                byte = load(minima, j) | load(minima, j + 4) >> 4 << 6
            else:
                byte = load(scales, j + 4) & 15 | (load(minima, j + 4) & 15) << 4
            word = word | (byte & 0xFF) << 8 * j
        store(packed, 1 + first, word)
    for j in range(4):
        at = 8 * j
        low, high, rest = load(packed, 1) >> at, load(packed, 2) >> at, load(packed, 3) >> at
        store(scales, j, low & 63)
        store(minima, j, high & 63)
        store(scales, j + 4, rest & 15 | (low >> 6 & 3) << 4)
        store(minima, j + 4, rest >> 4 & 15 | (high >> 6 & 3) << 4)


@compiled
def encode_blocks(
    halves: np.ndarray,
    words: np.ndarray,
    importance: np.ndarray,
    steps: np.ndarray,
    top: int,
    out: np.ndarray,
) -> int:
    """Fill ``out``; returns the number of places that hold what the type cannot.

    Args:
        halves, words: rows from :func:`qexport.codecs.tiles.row_bits`.
        importance: float32 ``(columns,)``, or empty.
        steps: from ``STEPS``.
        top: 15 for Q4_K, 31 for Q5_K.
        out: uint8 ``(rows, columns / 256 * block bytes)``.
    """
    bits_above = 8 if top > 15 else 0  # words of fifth bits
    block_words = 4 + bits_above + 32
    tile, weights = scratch(_BLOCK, LANES), scratch(_SIZE, LANES)
    codes = tile.view(np.int32)  # take the place of their values
    levels, lines = scratch(_SIZE, LANES), scratch(LANES, _BLOCK)
    scales, minima, totals = scratch(_SUBS, LANES), scratch(_SUBS, LANES), scratch(_SUBS, LANES)
    inverses, origins = scratch(_SUBS, LANES), scratch(_SUBS, LANES)
    scale_codes, minimum_codes = (
        scratch(_SUBS, LANES).view(np.int32),
        scratch(_SUBS, LANES).view(np.int32),
    )
    packed, packed_lines = scratch(48, LANES).view(np.int32), scratch(LANES, 48).view(np.int32)
    weighted = len(importance) > 0
    bad = 0
    for first in range(0, len(out), LANES):
        for block in range(out.shape[1] // (4 * block_words)):
            column = block * _BLOCK
            if read_tile(halves, words, first, column, _BLOCK, lines, tile) >= NOT_FINITE:
                bad += 1
            sigma2 = splat(0)
            if weighted:
                for i in range(_BLOCK):
                    x = load(tile, i)
                    sigma2 = sigma2 + x * x
                sigma2 = 2 * sigma2 / _BLOCK
            for sub in range(_SUBS):
                start = sub * _SIZE
                total = splat(0)
                if weighted:
                    for i in range(_SIZE):
                        x = load(tile, start + i)
                        weight = importance[column + start + i] * root(sigma2 + x * x)
                        total = total + weight
                        store(weights, i, weight)
                else:
                    for i in range(_SIZE):
                        x = load(tile, start + i)
                        total = total + x * x
                    spread = root(total / _SIZE)
                    for i in range(_SIZE):
                        store(weights, i, spread + absolute(load(tile, start + i)))
                store(totals, sub, total)
                scale, minimum, inverse, origin = search_range(
                    tile, start, weights, levels, steps, top, False
                )
                store(scales, sub, scale)
                store(minima, sub, minimum)
                store(inverses, sub, inverse)
                store(origins, sub, origin)

            if weighted:
                d = fit_scales(scales, totals, _TOP_CODE, scale_codes)
                d_min = fit_scales(minima, totals, _TOP_CODE, minimum_codes)
            else:
                d = round_scales(scales, _TOP_CODE, scale_codes)
                d_min = round_scales(minima, _TOP_CODE, minimum_codes)
            if top > 15 or not weighted:
                for sub in range(_SUBS):
                    for codes_ in (scale_codes, minimum_codes):
                        found = load(codes_, sub)
                        store(codes_, sub, select(found > _TOP_CODE, _TOP_CODE, found))
            d, d_min = half_bits(d), half_bits(d_min)
            if any_lane(((d & 0x7C00) == 0x7C00) | ((d_min & 0x7C00) == 0x7C00)):
                bad += 1
            store(packed, 0, d | (d_min << 16))
            _pack_scales(scale_codes, minimum_codes, packed, top)

            d, d_min = from_half_bits(d), from_half_bits(d_min)
            for i in range(4, block_words):
                store(packed, i, splat_int(0))
            for sub in range(_SUBS):
                scale = d * to_float(load(scale_codes, sub))
                minimum = d_min * to_float(load(minimum_codes, sub))
                gone = scale == 0
                if any_lane(gone):  # those levels stay as the search left them
                    for i in range(sub * _SIZE, (sub + 1) * _SIZE):
                        x = load(tile, i)
                        kept = code(load(inverses, sub) * (x - load(origins, sub)), top)
                        store(codes, i, select(gone, kept, code((x + minimum) / scale, top)))
                else:
                    for i in range(sub * _SIZE, (sub + 1) * _SIZE):
                        store(codes, i, code((load(tile, i) + minimum) / scale, top))
                for i in range(_SIZE):
                    found = load(codes, sub * _SIZE + i)
                    byte = 8 * (i & 3)
                    place = 4 + bits_above + 8 * (sub >> 1) + (i >> 2)
                    store(packed, place, load(packed, place) | (found & 15) << (byte + 4 * (sub & 1)))
                    if bits_above:
                        place = 4 + (i >> 2)
                        store(packed, place, load(packed, place) | (found >> 4) << (byte + sub))
            write_blocks(packed, packed_lines, out, first, block * 4 * block_words, 4 * block_words)
    return bad
