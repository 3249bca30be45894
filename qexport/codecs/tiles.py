"""Rows into lanes and packed blocks back: the reading and writing around a search.

A tile is ``LANES`` rows wide and some values long: ``tile[i, k]`` is value ``i`` of row ``first + k``. Where
fewer rows are left, the last one fills the remaining lanes and is not written. Rows are read where they lie,
and packed blocks leave as 32-bit words, a lane a row.

Rows come as ``halves`` and ``words``, the bits of bfloat16 and of float32: the one has the rows, the other is
empty. A kernel passes both on, and is compiled once for both dtypes.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lanes import (
    LANES,
    SQUARE,
    Lanes,
    all_lanes,
    load,
    raw_bits,
    read_square,
    select,
    splat,
    splat_int,
    store,
    write_square,
)

_LINE = 64  # bytes


@compiled
def scratch(rows: int, columns: int) -> np.ndarray:
    """Float32 ``(rows, columns)`` that begins on a cache line, so that no register's load crosses one."""
    raw = np.empty(rows * columns + 16, np.float32)
    skip = (64 - (raw.ctypes.data & 63)) // 4 & 15
    return raw[skip : skip + rows * columns].reshape(rows, columns)


@compiled
def read_tile(
    halves: np.ndarray, words: np.ndarray, first: int, column: int, count: int, tile: np.ndarray
) -> None:
    """Fill ``tile[:count]`` with the values from ``column`` on; ``count`` is a multiple of 16."""
    for i in range(0, count, SQUARE):
        for lane in range(0, LANES, SQUARE):
            if len(halves):
                read_square(halves, first + lane, column + i, len(halves) - 1, tile, i, lane)
            else:
                read_square(words, first + lane, column + i, len(words) - 1, tile, i, lane)


@compiled
def is_finite(tile: np.ndarray) -> bool:
    """Whether every value is."""
    highest = splat_int(0)
    for i in range(len(tile)):
        bits = raw_bits(load(tile, i)) & 0x7FFFFFFF
        highest = select(bits > highest, bits, highest)
    return bool(all_lanes(highest < 0x7F800000))


@compiled
def mean_square(halves: np.ndarray, words: np.ndarray, first: int, tile: np.ndarray) -> Lanes:
    """Of whole rows, summed in the order of the columns; ``tile`` is scratch."""
    columns = halves.shape[1]
    total = splat(0)
    for column in range(0, columns, len(tile)):
        count = min(len(tile), columns - column)
        read_tile(halves, words, first, column, count, tile)
        for i in range(count):
            x = load(tile, i)
            total = total + x * x
    return total / columns


@compiled
def put_half(packed: np.ndarray, at: int, half: Lanes) -> None:
    """16 bits into half ``at`` of the words; those before it are there already."""
    if at & 1:
        half = load(packed, at >> 1) | half << 16
    store(packed, at >> 1, half)


@compiled
def write_blocks(
    words: np.ndarray, rest: np.ndarray, out: np.ndarray, first: int, offset: int, count: int
) -> None:
    """Write the first ``count`` bytes of every lane at ``offset`` of its row.

    Blocks of a row are written from left to right: whole cache lines are stored, and what a block leaves
    beyond its end, its neighbour writes over. Only at the end of the row is the last line cut.

    Args:
        words: int32 ``(n, LANES)``, little-endian; ``n`` a multiple of 16 with at least ``count`` bytes.
        rest: uint8 scratch ``(LANES, 64)``.
        out: uint8 ``(rows, row_bytes)``.
    """
    last = len(out) - 1
    for start in range(0, count, _LINE):
        for lane in range(0, LANES, SQUARE):
            if offset + start + _LINE <= out.shape[1]:
                write_square(words, start // 4, lane, out, first + lane, offset + start, last)
            else:
                write_square(words, start // 4, lane, rest, lane, 0, LANES - 1)
                for k in range(lane, min(lane + SQUARE, len(out) - first)):
                    for i in range(count - start):
                        out[first + k, offset + start + i] = rest[k, i]
