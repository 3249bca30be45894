"""Rows into lanes and packed blocks back: the reading and writing around a search.

A tile is ``LANES`` rows wide and some values long: ``tile[i, k]`` is value ``i`` of row ``first + k``. Where
fewer rows are left, the last one fills the remaining lanes and is not written. Rows are read where they lie,
as the bits of bfloat16 or float32; packed blocks leave as 32-bit words, a lane a row.
"""

from __future__ import annotations

import numpy as np
import torch

from qexport.codecs.jit import compiled, float_of
from qexport.codecs.lane_moves import SQUARE, copy_bytes, turn_rows
from qexport.codecs.lanes import LANES, transpose_square

__all__ = ["NOT_FINITE", "read_tile", "row_bits", "scratch", "write_blocks"]

NOT_FINITE = np.uint32(0x7F800000)
"""Magnitude bits of infinity; those of a NaN are higher."""

_MAGNITUDE = np.uint32(0x7FFFFFFF)


def row_bits(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """bfloat16 or float32 rows as ``(halves, words)``: their bits in the one, the other empty.

    A kernel takes both and looks which one has the rows, so that it is compiled once for both dtypes.
    """
    empty = (0, rows.shape[1])
    if rows.dtype == torch.bfloat16:
        bits = rows.contiguous().view(torch.uint16).numpy()
        return np.require(bits, requirements=["C", "A"]), np.empty(empty, np.uint32)
    bits = rows.contiguous().view(torch.uint32).numpy()
    # A file may place a tensor at any byte; numba would compile a second kernel for unaligned rows.
    return np.empty(empty, np.uint16), np.require(bits, requirements=["C", "A"])


@compiled
def scratch(rows: int, columns: int) -> np.ndarray:
    """Float32 ``(rows, columns)`` that begins on a cache line, so that no register's load crosses one."""
    raw = np.empty(rows * columns + 16, np.float32)
    skip = (64 - (raw.ctypes.data & 63)) // 4 & 15
    return raw[skip : skip + rows * columns].reshape(rows, columns)


@compiled
def read_tile(
    halves: np.ndarray,
    words: np.ndarray,
    first: int,
    column: int,
    count: int,
    lines: np.ndarray,
    tile: np.ndarray,
) -> np.uint32:
    """Fill ``tile[:count]`` from ``column`` on; returns the largest magnitude's bits.

    Args:
        lines: scratch ``(LANES, at least count)``.
        tile: float32 ``(at least count, LANES)``; ``count`` is a multiple of 16.
    """
    highest = np.uint32(0)
    for lane in range(0, LANES, SQUARE):
        if len(halves):
            for i in range(0, count, 2 * SQUARE):
                highest = max(highest, turn_rows(halves, first + lane, column + i, tile, i, lane))
        else:
            for i in range(0, count, SQUARE):
                highest = max(highest, turn_rows(words, first + lane, column + i, tile, i, lane))
    return highest


@compiled
def write_blocks(
    words: np.ndarray, lines: np.ndarray, out: np.ndarray, first: int, offset: int, count: int
) -> None:
    """Write ``count`` bytes of every lane at ``offset`` of its row.

    Args:
        words: int32 ``(n, LANES)``: little-endian words, ``n`` a multiple of 16 with at least ``count`` bytes.
        lines: int32 scratch ``(LANES, n)``.
        out: uint8 ``(rows, row_bytes)``.
    """
    for lane in range(0, LANES, SQUARE):
        for i in range(0, len(words), SQUARE):
            transpose_square(words, i, lane, lines, lane, i)
    for lane in range(min(LANES, len(out) - first)):
        copy_bytes(lines, lane, out, first + lane, offset, count)
