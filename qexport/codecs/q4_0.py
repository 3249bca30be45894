"""Q4_0 and Q5_0: 32 values share a float16 scale, each is 4 or 5 bits.

A value is ``d * (l - 8)`` with ``l`` from 0 to 15, or ``d * (l - 16)`` with ``l`` up to 31, and a block is stored as

    d            float16
    4 bytes      Q5_0 only: bit ``i`` is the fifth bit of value ``i``
    16 bytes     four bits a value: byte ``i`` holds value ``i`` and, above it, value ``i + 16``

The bytes are those of ``quantize_row_q4_0_ref``, ``quantize_row_q4_0_impl`` and their like for Q5_0 in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c:

- Without importance the value of largest magnitude is mapped to -8 (-16) and nothing is searched. Halves are
  rounded up, by truncating ``x / d + 8.5``; ``1 / d`` is rounded before it is multiplied with; a zero block has
  the scale -0 and all levels 8 (16). Where ``1 / d`` is infinite the levels are 0, and ``d`` is zero anyway.
- With importance a value's weight is ``importance * sqrt(sigma2 + x * x)``, ``sigma2`` the mean square of the
  whole row, and the scale is searched (:mod:`qexport.codecs.scale_search`). Rows are read twice, as ``sigma2``
  is a sum in the order of the columns.

One kernel serves both types; blocks are packed in 16-bit halves, as both have an even number of bytes.

Left out: values that are not finite, or too large for a float16 scale; such places are counted.
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
    to_float,
    to_int,
)
from qexport.codecs.scale_search import factors_around, largest, levels_of, search_scale
from qexport.codecs.tiles import is_finite, read_tile, row_bits, scratch, write_blocks

__all__ = ["FACTORS", "encode_blocks"]

FACTORS = {"Q4_0": factors_around(8), "Q5_0": factors_around(16)}

_SIZE = 32
_GROUP = 8  # blocks that are read and written together
_INFINITY = np.float32(np.inf)


@compiled
def encode_blocks(
    halves: np.ndarray,
    words: np.ndarray,
    importance: np.ndarray,
    factors: np.ndarray,
    top: int,
    out: np.ndarray,
) -> int:
    """Fill ``out``; returns the number of places that hold what the type cannot.

    Args:
        halves, words: rows from :func:`qexport.codecs.tiles.row_bits`.
        importance: float32 ``(columns,)``, or empty.
        factors: from ``FACTORS``.
        top: 8 for Q4_0, 16 for Q5_0.
        out: uint8 ``(rows, columns / 32 * block bytes)``.
    """
    parts = 11 if top > 8 else 9  # 16-bit halves of a block
    group = _GROUP * _SIZE
    columns = halves.shape[1]
    tile = scratch(group, LANES)
    weights, products = scratch(_SIZE, LANES), scratch(_SIZE, LANES)
    levels = scratch(_SIZE, LANES).view(np.int32)
    packed, rest = scratch(48, LANES).view(np.int32), scratch(LANES, 16).view(np.uint8)
    weighted = len(importance) > 0
    bad = 0
    for first in range(0, len(out), LANES):
        sigma2 = splat(0)
        if weighted:
            for column in range(0, columns, group):
                here = min(group, columns - column)
                read_tile(halves, words, first, column, here, tile)
                for i in range(here):
                    x = load(tile, i)
                    sigma2 = sigma2 + x * x
            sigma2 = sigma2 / columns
        for column in range(0, columns, group):
            here = min(group, columns - column)
            read_tile(halves, words, first, column, here, tile)
            bad += not is_finite(tile[:here])
            for block in range(here // _SIZE):
                start = block * _SIZE
                if weighted:
                    for i in range(_SIZE):
                        x = load(tile, start + i)
                        store(weights, i, importance[column + start + i] * root(sigma2 + x * x))
                    d, inverse = search_scale(tile, start, weights, products, factors, top, True)
                    for i in range(_SIZE):
                        store(levels, i, levels_of(load(tile, start + i), inverse, top))
                else:
                    d = _round_block(tile, start, levels, top)
                half = half_bits(d)
                bad += any_lane((half & 0x7C00) == 0x7C00)
                _pack(half, levels, packed, block * parts, parts)
            count = here // _SIZE * parts * 2
            write_blocks(packed, rest, out, first, column // _SIZE * parts * 2, count)
    return bad


@compiled
def _round_block(tile: np.ndarray, start: int, levels: np.ndarray, top: int) -> Lanes:
    """Levels of one block when its largest value becomes ``-top``; returns ``d``."""
    _, value = largest(tile, start, _SIZE)
    d = value / -top
    inverse = select(d != 0, 1 / d, 0)
    lost = absolute(inverse) == _INFINITY
    inverse = select(lost, 0, inverse)
    shift = select(lost, 0, splat(top + 0.5))
    for i in range(_SIZE):
        level = to_int(load(tile, start + i) * inverse + shift)
        store(levels, i, select(level > 2 * top - 1, 2 * top - 1, level))
    return d


@compiled
def _pack(d: Lanes, levels: np.ndarray, packed: np.ndarray, at: int, parts: int) -> None:
    """One block as ``parts`` halves, from half ``at`` of ``packed`` on."""
    _put(packed, at, d)
    if parts > 9:
        for half in range(2):
            bits = splat_int(0)
            for i in range(16):
                bits = bits | (load(levels, 16 * half + i) >> 4) << i
            _put(packed, at + 1 + half, bits)
    for i in range(0, 16, 2):
        low = load(levels, i) & 15 | (load(levels, i + 16) & 15) << 4
        high = load(levels, i + 1) & 15 | (load(levels, i + 17) & 15) << 4
        _put(packed, at + parts - 8 + i // 2, low | high << 8)


@compiled
def _put(packed: np.ndarray, at: int, half: Lanes) -> None:
    """Half ``at`` of the words; the ones before are there already."""
    if at & 1:
        half = load(packed, at >> 1) | half << 16
    store(packed, at >> 1, half)
