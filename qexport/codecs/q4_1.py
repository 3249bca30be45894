"""Q4_1 and Q5_1: 32 values share a float16 scale and a float16 minimum.

A value is ``d * l + m`` with ``l`` of 4 or 5 bits, and a block is stored as

    d, m         float16 each
    4 bytes      Q5_1 only: bit ``i`` is the fifth bit of value ``i``
    16 bytes     byte ``i`` holds values ``i`` and ``i + 16``

Without importance ``m`` is the least value, ``d`` the extent in ``top`` steps, and codes are rounded by
adding a half and cutting. With it every block is searched (:mod:`qexport.codecs.range_search`); an error's
weight is the column's importance times ``sqrt(mean square of the row + x * x)``.

The bytes are those of ``quantize_row_q4_1_ref``, ``quantize_row_q4_1_impl`` and their like for Q5_1 in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c

Left out: values that are not finite, and blocks whose scales float16 cannot hold; both are counted.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import half_bits
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
    to_int,
)
from qexport.codecs.range_search import found_codes, search_range, steps_around
from qexport.codecs.tiles import is_finite, mean_square, read_tile, scratch, write_blocks

_TOPS = {"Q4_1": 15, "Q5_1": 31}
_STEPS = {"Q4_1": steps_around(15, -0.9, 0.05, 36), "Q5_1": steps_around(31, -0.9, 0.05, 36)}
_SIZE = 32
_GROUP = 8  # blocks turned into lanes at once


def encode(
    type_name: str, halves: np.ndarray, words: np.ndarray, importance: np.ndarray, out: np.ndarray
) -> int:
    """Fill ``out``; the contract is in :mod:`qexport.codecs.native`."""
    return int(_encode(halves, words, importance, _STEPS[type_name], _TOPS[type_name], out))


@compiled
def _encode(
    halves: np.ndarray,
    words: np.ndarray,
    importance: np.ndarray,
    steps: np.ndarray,
    top: int,
    out: np.ndarray,
) -> int:
    block_words = 6 if top > 15 else 5
    tile, rest = scratch(_GROUP * _SIZE, LANES), scratch(LANES, 16).view(np.uint8)
    codes = tile.view(np.int32)  # take the place of their values
    weights, levels = scratch(_SIZE, LANES), scratch(_SIZE, LANES)
    packed = scratch(_GROUP * 6, LANES).view(np.int32)
    blocks = halves.shape[1] // _SIZE
    bad = 0
    for first in range(0, len(out), LANES):
        spread = splat(0)
        if len(importance):
            spread = mean_square(halves, words, first, tile)
        for start in range(0, blocks, _GROUP):
            count = min(_GROUP, blocks - start)
            read_tile(halves, words, first, start * _SIZE, count * _SIZE, tile)
            bad += 1 - is_finite(tile[: count * _SIZE])
            for block in range(count):
                at = block * _SIZE
                if len(importance):
                    column = start * _SIZE + at
                    for i in range(_SIZE):
                        x = load(tile, at + i)
                        store(weights, i, importance[column + i] * root(spread + x * x))
                    scale, minimum, inverse, origin = search_range(
                        tile, at, weights, levels, steps, top, False, True
                    )
                    low = -minimum
                    for i in range(at, at + _SIZE):
                        store(codes, i, found_codes(load(tile, i), inverse, origin, top, True))
                else:
                    scale, low = _round_block(tile, at, codes, top)
                bad += _store_scales(packed, block * block_words, scale, low)
                _pack(codes, at, packed, block * block_words + 1, top)
            offset, size = start * block_words * 4, count * block_words * 4
            write_blocks(packed, rest, out, first, offset, size)
    return bad


@compiled
def _round_block(tile: np.ndarray, at: int, codes: np.ndarray, top: int) -> tuple[Lanes, Lanes]:
    """Codes of one block between its least and its largest value; returns scale and minimum."""
    low = load(tile, at)
    high = low
    for i in range(at + 1, at + _SIZE):
        x = load(tile, i)
        low = select(x < low, x, low)
        high = select(x > high, x, high)
    scale = (high - low) / np.float32(top)
    # A scale too small to invert gives zeros: so do ggml's bytes of infinite and NaN quotients.
    inverse = splat(1) / scale
    inverse = select(inverse < np.float32(np.inf), inverse, 0)
    for i in range(at, at + _SIZE):
        store(codes, i, to_int((load(tile, i) - low) * inverse + np.float32(0.5)))
    return scale, low


@compiled
def _store_scales(packed: np.ndarray, place: int, scale: Lanes, minimum: Lanes) -> int:
    """The first word of a block; returns whether float16 cannot hold it."""
    d, m = half_bits(scale), half_bits(minimum)
    store(packed, place, d | m << 16)
    return int(any_lane(((d & 0x7C00) == 0x7C00) | ((m & 0x7C00) == 0x7C00)))


@compiled
def _pack(codes: np.ndarray, at: int, packed: np.ndarray, place: int, top: int) -> None:
    """The other words of a block from ``codes[at : at + 32]``."""
    if top > 15:
        fifth = splat_int(0)
        for i in range(_SIZE):
            fifth = fifth | load(codes, at + i) >> 4 << i
        store(packed, place, fifth)
        place += 1
    for word in range(4):
        together = splat_int(0)
        for i in range(4):
            low, high = load(codes, at + 4 * word + i), load(codes, at + 4 * word + i + 16)
            together = together | (low & 15 | (high & 15) << 4) << 8 * i
        store(packed, place + word, together)
