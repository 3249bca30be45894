"""Q4_K and Q5_K: 256 values in eight sub-blocks of 32, each with a 6-bit scale and a 6-bit minimum.

A value is ``d * scale * l - dmin * minimum`` with ``l`` of 4 or 5 bits, and a block is stored as

    d, dmin      float16 each
    12 bytes     eight scales and eight minima of 6 bits: bytes 0-3 and 4-7 hold those of sub-blocks 0-3 in
                 their low six bits and the upper two bits of sub-blocks 4-7, bytes 8-11 their lower four
    32 bytes     Q5_K only: bit ``j`` of byte ``i`` is the fifth bit of value ``i`` of sub-block ``j``
    128 bytes    four bits a value: byte ``32 * p + i`` holds values ``i`` of sub-blocks ``2 p``, ``2 p + 1``

Each sub-block is searched (:mod:`qexport.codecs.range_search`), its scale and minimum are rounded to 6
bits of the largest, or fitted to them with importance, and the values are rounded once more with what was
stored. How much an error counts: with importance the column's times ``sqrt(sigma2 + x * x)``, ``sigma2``
twice the mean square of the block; without it the sub-block's root mean square plus ``|x|``.

The bytes are those of ``quantize_row_q4_K_ref``, ``quantize_row_q4_K_impl`` and their like for Q5_K in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c. The same kernel serves both types,
with and without importance, bfloat16 and float32: it is compiled once.

Left out: values that are not finite, and blocks whose scales float16 cannot hold; both are counted.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import from_half_bits, half_bits
from qexport.codecs.lanes import LANES, any_lane, load, select, splat_int, store
from qexport.codecs.range_search import fit_scales, round_scales, steps_around
from qexport.codecs.super_blocks import BLOCK, final_codes, search_sub_blocks, work_arrays
from qexport.codecs.tiles import is_finite, read_tile, write_blocks

_TOPS = {"Q4_K": 15, "Q5_K": 31}
_STEPS = {
    ("Q4_K", False): steps_around(15, -1.0, 0.1, 20),
    ("Q4_K", True): steps_around(15, -0.9, 0.05, 36),
    ("Q5_K", False): steps_around(31, -0.5, 0.1, 15),
    ("Q5_K", True): steps_around(31, -0.9, 0.05, 36),
}
"""The trials of each search, by type and whether there is importance."""

_SUBS, _SIZE, _TOP_CODE = 8, 32, 63


def encode(
    type_name: str, halves: np.ndarray, words: np.ndarray, importance: np.ndarray, out: np.ndarray
) -> int:
    """Fill ``out``; the contract is in :mod:`qexport.codecs.native`."""
    steps = _STEPS[type_name, len(importance) > 0]
    return int(_encode(halves, words, importance, steps, _TOPS[type_name], out))


@compiled
def _encode(
    halves: np.ndarray,
    words: np.ndarray,
    importance: np.ndarray,
    steps: np.ndarray,
    top: int,
    out: np.ndarray,
) -> int:
    fifth = 8 if top > 15 else 0  # words of fifth bits
    block_words = 4 + fifth + 32
    work = work_arrays(_SUBS)
    scales, minima, packed = work.scale_codes, work.minimum_codes, work.packed
    weighted = len(importance) > 0
    bad = 0
    for first in range(0, len(out), LANES):
        for block in range(out.shape[1] // (4 * block_words)):
            column = block * BLOCK
            read_tile(halves, words, first, column, BLOCK, work.tile)
            bad += 1 - is_finite(work.tile)
            search_sub_blocks(work, importance[column : column + BLOCK], steps, top, 2.0, False)
            if weighted:
                d = half_bits(fit_scales(work.scales, work.totals, _TOP_CODE, scales))
                d_min = half_bits(fit_scales(work.minima, work.totals, _TOP_CODE, minima))
            else:
                d = half_bits(round_scales(work.scales, _TOP_CODE, scales))
                d_min = half_bits(round_scales(work.minima, _TOP_CODE, minima))
            if any_lane(((d & 0x7C00) == 0x7C00) | ((d_min & 0x7C00) == 0x7C00)):
                bad += 1
            if top > 15 or not weighted:
                _limit(scales)
                _limit(minima)
            store(packed, 0, d | d_min << 16)
            _pack_scales(scales, minima, packed)
            final_codes(work, from_half_bits(d), from_half_bits(d_min), top, weighted)

            for i in range(4, block_words):
                store(packed, i, splat_int(0))
            for sub in range(_SUBS):
                for i in range(_SIZE):
                    found, byte = load(work.codes, sub * _SIZE + i), 8 * (i & 3)
                    place = 4 + fifth + 8 * (sub >> 1) + (i >> 2)
                    store(packed, place, load(packed, place) | (found & 15) << byte + 4 * (sub & 1))
                    if fifth:
                        place = 4 + (i >> 2)
                        store(packed, place, load(packed, place) | found >> 4 << byte + sub)
            write_blocks(packed, work.rest, out, first, block * 4 * block_words, 4 * block_words)
    return bad


@compiled
def _limit(codes: np.ndarray) -> None:
    """Codes above 63 become 63: a negative scale, from a degenerate search, has left 255 or less."""
    for i in range(_SUBS):
        found = load(codes, i)
        store(codes, i, select(found > _TOP_CODE, _TOP_CODE, found))


@compiled
def _pack_scales(scales: np.ndarray, minima: np.ndarray, packed: np.ndarray) -> None:
    """Words 1 to 3 of the block; ``scales`` and ``minima`` become what a reader will find there.

    Those are the same numbers, but for a code that :func:`_limit` would have cut: for Q4_K with importance
    ggml does not, and lets all eight bits into the block.
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
