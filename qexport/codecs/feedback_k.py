"""Error feedback in ggml's types of super-blocks: Q2_K to Q6_K and IQ4_XS.

When a block is reached, what its columns have become goes through the type's own encoder, with importance if
there is any. Of that the scales are kept. The codes are found again a column at a time and written into
the block: where each one's bits lie is a table (:class:`Places`; what a block holds is described in the
encoders' modules).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from qexport.codecs.contract import Blocks, Known, Packed
from qexport.codecs.decode_blocks import IQ4_VALUES, float16_at
from qexport.codecs.decode_super import scale_and_minimum, scale_of_iq4
from qexport.codecs.feedback import given
from qexport.codecs.feedback_columns import (
    IQ4,
    UNIFORM,
    Lines,
    descend,
    expect,
    lines_for,
    rows_of,
    settle,
    work_on,
)
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.codecs.jit import compiled
from qexport.codecs.lanes import LANES
from qexport.codecs.native import quantize_into

_BLOCK = 256


class Places(NamedTuple):
    """Where the codes of a block lie: their low bits and their high bits, a byte and a shift for each."""

    width: int  # columns that share a scale
    levels: np.ndarray  # what the codes stand for
    bits: int  # of the low part
    more: int  # of the high part, which may be missing
    low_byte: np.ndarray
    low_shift: np.ndarray
    high_byte: np.ndarray
    high_shift: np.ndarray


@cache
def layout_of(name: str) -> Places:
    """The layout of a type."""
    i = np.arange(_BLOCK)
    half, part, inside = i // 128, i % 128 // 32, i % 32
    pairs = (32 * (i // 64) + inside, 4 * (i // 32 % 2))
    whole = np.arange(64, dtype=np.float32)
    none = (np.zeros(_BLOCK, np.int64), np.zeros(_BLOCK, np.int64))
    fours = (32 * half + inside, 2 * part)
    return {
        "Q2_K": Places(16, whole[:4], 2, 0, 16 + fours[0], fours[1], *none),
        "Q3_K": Places(16, whole[:8] - 4, 2, 1, 32 + fours[0], fours[1], inside, i // 32),
        "Q4_K": Places(32, whole[:16], 4, 0, 16 + pairs[0], pairs[1], *none),
        "Q5_K": Places(32, whole[:32], 4, 1, 48 + pairs[0], pairs[1], 16 + inside, i // 32),
        "IQ4_XS": Places(32, IQ4_VALUES, 4, 0, 8 + i // 32 * 16 + i % 16, i % 32 // 16 * 4, *none),
        "Q6_K": Places(
            16, whole - 32, 4, 2, 64 * half + i % 64, 4 * (i % 128 // 64), 128 + fours[0], fours[1]
        ),
    }[name]


def encode(stored: Blocks, rows: torch.Tensor, known: Known) -> Packed:
    """One stream; the contract is in :mod:`qexport.codecs.contract`."""
    feedback = given(known)
    n, columns = rows.shape
    nbytes, layout = GGML_TYPES[stored.name].nbytes, layout_of(stored.name)
    blocks = columns // _BLOCK
    packed, block = np.empty((n, blocks * nbytes), np.uint8), np.empty((n, nbytes), np.uint8)
    places = np.argsort(feedback.order)
    work = work_on(rows, feedback, layout.width)
    target = lines_for(work, _BLOCK, columns)
    grid = IQ4 if stored.name == "IQ4_XS" else UNIFORM
    bottom, top = float(layout.levels[0]), float(layout.levels[-1])
    bad = 0
    for number in range(blocks):
        first = number * _BLOCK
        span = slice(first, first + _BLOCK)
        expect(work, feedback.reach, first, _BLOCK, False, target)
        values = rows_of(target, places[span] - first, n)
        weights = None if known.importance is None else known.importance[span]
        bad += quantize_into(stored.name, values, weights, block)
        packed[:, number * nbytes : (number + 1) * nbytes] = block
        _read_scales(block, work, number, columns // layout.width)
        settle(work, feedback.reach, first, _BLOCK, False, target, grid, bottom, top)
    descend(work, feedback, grid, bottom, top)
    codes = np.searchsorted(layout.levels, rows_of(work.levels, places, n).numpy()).astype(np.uint8)
    _write_codes(codes, layout, packed)
    return Packed((packed,), bad)


@compiled
def _read_scales(packed: np.ndarray, work: Lines, block: int, count: int) -> None:
    """The scales and minima of each row's block, of ``count`` in a row, computed as readers do."""
    scales, lows = np.zeros(16, np.float32), np.zeros(16, np.float32)
    for row in range(len(packed)):
        subs = _scales_of(packed[row], scales, lows)
        at = row // LANES * count + block * subs
        for sub in range(subs):
            work.scales[at + sub, row % LANES] = scales[sub]
            work.lows[at + sub, row % LANES] = lows[sub]


@compiled
def _scales_of(block: np.ndarray, scales: np.ndarray, lows: np.ndarray) -> int:
    """How many scales the block has; types differ in their bytes."""
    if len(block) == 84:  # Q2_K
        d, d_min = float16_at(block, 80), float16_at(block, 82)
        for sub in range(16):
            scales[sub] = d * np.float32(block[sub] & 15)
            lows[sub] = d_min * np.float32(block[sub] >> 4)
        return 16
    if len(block) == 110:  # Q3_K
        d = float16_at(block, 108)
        for sub in range(16):
            lower = block[96 + sub % 8] >> (4 * (sub // 8)) & 15
            upper = block[104 + sub % 4] >> (2 * (sub // 4)) & 3
            scales[sub] = d * np.float32(np.int8((lower | upper << 4) - 32))
        return 16
    if len(block) == 210:  # Q6_K
        d = float16_at(block, 208)
        for sub in range(16):
            scales[sub] = d * np.float32(np.int8(block[192 + sub]))
        return 16
    if len(block) == 136:  # IQ4_XS
        for sub in range(8):
            scales[sub] = scale_of_iq4(block, sub)
        return 8
    d, d_min = float16_at(block, 0), float16_at(block, 2)
    for sub in range(8):
        scale, minimum = scale_and_minimum(block[4:16], sub)
        scales[sub] = d * np.float32(scale)
        lows[sub] = d_min * np.float32(minimum)
    return 8


@compiled
def _write_codes(codes: np.ndarray, layout: Places, packed: np.ndarray) -> None:
    """Replace the codes of all blocks by those of ``(n, columns)``."""
    blocks = codes.shape[1] // 256
    nbytes = packed.shape[1] // blocks
    mask = (1 << layout.bits) - 1
    for row in range(len(packed)):
        for block in range(blocks):
            out = packed[row, block * nbytes : (block + 1) * nbytes]
            values = codes[row, block * 256 : (block + 1) * 256]
            for i in range(256):
                out[layout.low_byte[i]] = 0
                if layout.more:
                    out[layout.high_byte[i]] = 0
            for i in range(256):
                code = int(values[i])
                out[layout.low_byte[i]] |= np.uint8((code & mask) << layout.low_shift[i])
                if layout.more:
                    out[layout.high_byte[i]] |= np.uint8(code >> layout.bits << layout.high_shift[i])
