"""Q4_0 and Q5_0: 32 values share a float16 scale, each is 4 or 5 bits.

A value is ``d * (l - 8)`` with ``l`` from 0 to 15, or ``d * (l - 16)`` with ``l`` up to 31, and a block is
stored as

    d            float16
    4 bytes      Q5_0 only: bit ``i`` is the fifth bit of value ``i``
    16 bytes     four bits a value: byte ``i`` holds value ``i`` and, above it, value ``i + 16``

The bytes are those of ``quantize_row_q4_0_ref``, ``quantize_row_q4_0_impl`` and their like for Q5_0 in
https://github.com/ggml-org/llama.cpp/blob/01243c587feceaa5d6a6c2305535ef2f549c48b8/ggml/src/ggml-quants.c

- Without importance the value of largest magnitude is mapped to -8 (-16) and nothing is searched. Halves go
  up, as ``x * (1 / d) + 8.5`` is cut off; a zero block has the scale -0 and all levels 8 (16). Where
  ``1 / d`` is infinite ggml's levels are 0, and ``d`` is zero anyway.
- With importance a value's weight is the column's times ``sqrt(sigma2 + x * x)``, ``sigma2`` the mean square
  of the whole row, and the scale is searched (:mod:`qexport.codecs.scale_search`). Rows are read twice, since
  ``sigma2`` is a sum in the order of the columns.

One kernel serves both types; blocks are packed in 16-bit halves, as both have an even number of bytes.

Left out: values that are not finite, and blocks whose scale float16 cannot hold; both are counted.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lane_numbers import half_bits
from qexport.codecs.lanes import (
    LANES,
    Lanes,
    absolute,
    any_lane,
    load,
    root,
    select,
    splat,
    splat_int,
    store,
    to_int,
)
from qexport.codecs.scale_search import factors_around, largest, levels_of, search_scale
from qexport.codecs.tiles import is_finite, mean_square, put_half, read_tile, scratch, write_blocks

_TOPS = {"Q4_0": 8, "Q5_0": 16}
_FACTORS = {name: factors_around(top) for name, top in _TOPS.items()}
_SIZE = 32
_GROUP = 8  # blocks turned into lanes at once
_INFINITY = np.float32(np.inf)


def encode(
    type_name: str, halves: np.ndarray, words: np.ndarray, importance: np.ndarray, out: np.ndarray
) -> int:
    """Fill ``out``; the contract is in :mod:`qexport.codecs.native`."""
    return int(_encode(halves, words, importance, _FACTORS[type_name], _TOPS[type_name], out))


@compiled
def _encode(
    halves: np.ndarray,
    words: np.ndarray,
    importance: np.ndarray,
    factors: np.ndarray,
    top: int,
    out: np.ndarray,
) -> int:
    parts = 11 if top > 8 else 9  # 16-bit halves of a block
    tile, rest = scratch(_GROUP * _SIZE, LANES), scratch(LANES, 16).view(np.uint8)
    codes = tile.view(np.int32)  # take the place of their values
    weights, products = scratch(_SIZE, LANES), scratch(_SIZE, LANES)
    packed = scratch(48, LANES).view(np.int32)
    blocks = halves.shape[1] // _SIZE
    bad = 0
    for first in range(0, len(out), LANES):
        sigma2 = splat(0)
        if len(importance):
            sigma2 = mean_square(halves, words, first, tile)
        for group in range(0, blocks, _GROUP):
            count = min(_GROUP, blocks - group)
            read_tile(halves, words, first, group * _SIZE, count * _SIZE, tile)
            bad += 1 - is_finite(tile[: count * _SIZE])
            for block in range(count):
                start = block * _SIZE
                if len(importance):
                    column = group * _SIZE + start
                    for i in range(_SIZE):
                        x = load(tile, start + i)
                        store(weights, i, importance[column + i] * root(sigma2 + x * x))
                    d, inverse = search_scale(tile, start, weights, products, factors, top, True)
                    for i in range(start, start + _SIZE):
                        store(codes, i, levels_of(load(tile, i), inverse, top))
                else:
                    d = _round_block(tile, start, codes, top)
                half = half_bits(d)
                bad += int(any_lane((half & 0x7C00) == 0x7C00))
                _pack(half, codes, start, packed, block * parts, parts)
            write_blocks(packed, rest, out, first, group * parts * 2, count * parts * 2)
    return bad


@compiled
def _round_block(tile: np.ndarray, start: int, codes: np.ndarray, top: int) -> Lanes:
    """Levels of one block when its largest value becomes ``-top``; returns ``d``."""
    _, value = largest(tile, start, _SIZE)
    d = value / -top
    inverse = select(d != 0, 1 / d, 0)
    lost = absolute(inverse) == _INFINITY
    inverse = select(lost, 0, inverse)
    shift = select(lost, 0, splat(top + 0.5))
    for i in range(start, start + _SIZE):
        level = to_int(load(tile, i) * inverse + shift)
        store(codes, i, select(level > 2 * top - 1, 2 * top - 1, level))
    return d


@compiled
def _pack(d: Lanes, codes: np.ndarray, start: int, packed: np.ndarray, at: int, parts: int) -> None:
    """One block as ``parts`` halves, from half ``at`` of ``packed`` on."""
    put_half(packed, at, d)
    if parts > 9:
        for half in range(2):
            bits = splat_int(0)
            for i in range(16):
                bits = bits | load(codes, start + 16 * half + i) >> 4 << i
            put_half(packed, at + 1 + half, bits)
    for i in range(0, 16, 2):
        low = load(codes, start + i) & 15 | (load(codes, start + i + 16) & 15) << 4
        high = load(codes, start + i + 1) & 15 | (load(codes, start + i + 17) & 15) << 4
        put_half(packed, at + parts - 8 + i // 2, low | high << 8)
