"""Q2_K: 256 values in sixteen sub-blocks of 16, each with a 4-bit scale and a 4-bit minimum.

A value is ``d * scale * l - dmin * minimum`` with ``l`` of 2 bits, and a block is stored as

    16 bytes     a sub-block's scale in the low, its minimum in the high four bits
    64 bytes     byte ``32 * h + i`` holds values ``i``, ``i + 32``, ``i + 64`` and ``i + 96`` of half ``h``
    d, dmin      float16 each

Each sub-block is searched (:mod:`qexport.codecs.super_blocks`). Without importance magnitudes of errors
are weighed by ``|x|``; with it squares, by the column's importance times ``sqrt(mean square of the block +
x * x)``.

The bytes are those of ``quantize_row_q2_K_ref`` and ``quantize_row_q2_K_impl`` in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c

Left out: values that are not finite, and blocks whose scales float16 cannot hold; both are counted.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import from_half_bits, half_bits
from qexport.codecs.lanes import LANES, any_lane, load, splat_int, store
from qexport.codecs.range_search import fit_scales, round_scales, steps_around
from qexport.codecs.super_blocks import BLOCK, final_codes, search_sub_blocks, work_arrays
from qexport.codecs.tiles import is_finite, read_tile, write_blocks

_PLAIN, _WEIGHTED = steps_around(3, -0.5, 0.1, 15), steps_around(3, -0.9, 0.05, 36)
_SUBS, _WORDS = 16, 21
_TOP, _TOP_CODE = 3, 15


def encode(
    type_name: str, halves: np.ndarray, words: np.ndarray, importance: np.ndarray, out: np.ndarray
) -> int:
    """Fill ``out``; the contract is in :mod:`qexport.codecs.native`."""
    steps = _WEIGHTED if len(importance) else _PLAIN
    return int(_encode(halves, words, importance, steps, out))


@compiled
def _encode(
    halves: np.ndarray, words: np.ndarray, importance: np.ndarray, steps: np.ndarray, out: np.ndarray
) -> int:
    work = work_arrays(_SUBS)
    scales, minima, packed = work.scale_codes, work.minimum_codes, work.packed
    weighted = len(importance) > 0
    bad = 0
    for first in range(0, len(out), LANES):
        for block in range(out.shape[1] // (4 * _WORDS)):
            column = block * BLOCK
            read_tile(halves, words, first, column, BLOCK, work.tile)
            bad += 1 - is_finite(work.tile)
            search_sub_blocks(work, importance[column : column + BLOCK], steps, _TOP, 1.0, not weighted)
            if weighted:
                d = half_bits(fit_scales(work.scales, work.totals, _TOP_CODE, scales))
                d_min = half_bits(fit_scales(work.minima, work.totals, _TOP_CODE, minima))
            else:
                d = half_bits(round_scales(work.scales, _TOP_CODE, scales))
                d_min = half_bits(round_scales(work.minima, _TOP_CODE, minima))
            if any_lane(((d & 0x7C00) == 0x7C00) | ((d_min & 0x7C00) == 0x7C00)):
                bad += 1

            for i in range(_WORDS - 1):
                store(packed, i, splat_int(0))
            for sub in range(_SUBS):
                # A negative code, from a degenerate search, is a byte with all bits set: ggml lets it spill.
                both = (load(scales, sub) | load(minima, sub) << 4) & 0xFF
                store(packed, sub >> 2, load(packed, sub >> 2) | both << 8 * (sub & 3))
                store(scales, sub, both & 15)
                store(minima, sub, both >> 4)
            final_codes(work, from_half_bits(d), from_half_bits(d_min), _TOP, weighted)
            for i in range(BLOCK):
                place = 4 + (i >> 7) * 8 + ((i & 31) >> 2)
                shift = 8 * (i & 3) + 2 * ((i & 127) >> 5)
                store(packed, place, load(packed, place) | load(work.codes, i) << shift)
            store(packed, _WORDS - 1, d | d_min << 16)
            write_blocks(packed, work.rest, out, first, block * 4 * _WORDS, 4 * _WORDS)
    return bad
