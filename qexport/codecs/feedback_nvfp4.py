"""Error feedback in NVFP4: every block of 16 columns takes the scale that then loses least.

The search is that of :mod:`qexport.codecs.nvfp4`, around the usual scale of what the block's columns have
become. The global scale is that of the source's largest magnitude, as matrices that a runtime fuses share it.
"""

from __future__ import annotations

import numpy as np
import torch

from qexport.codecs.contract import Known, Nvfp4, Packed
from qexport.codecs.feedback import given
from qexport.codecs.feedback_columns import (
    E2M1,
    Lines,
    add_reach,
    descend,
    expect,
    lines_for,
    rows_of,
    settle_group,
    work_on,
)
from qexport.codecs.jit import bits_of, compiled
from qexport.codecs.lanes import LANES
from qexport.codecs.nvfp4 import BLOCK, searched_scale, shared_scale, step_of, stored_once
from qexport.codecs.small_floats import AS_IT_IS, e2m1_code

_TOP = 6.0
_AT_ONCE = 256  # columns whose wishes from those before are added up together


def encode(stored: Nvfp4, rows: torch.Tensor, known: Known) -> Packed:
    """Levels, block scales, and what is stored once; :mod:`qexport.codecs.contract`."""
    feedback = given(known)
    n, columns = rows.shape
    shared = shared_scale(stored, rows.dtype, known.largest)
    weights = np.ones(columns, np.float32) if known.importance is None else known.importance
    weights = np.require(weights, requirements=["C", "A", "W"])
    places = np.argsort(feedback.order)
    work = work_on(rows, feedback, BLOCK)
    scales = np.empty((n, columns // BLOCK), np.uint8)
    for first in range(0, columns, _AT_ONCE):
        count = min(_AT_ONCE, columns - first)
        target = lines_for(work, count, columns)
        expect(work, feedback.reach, first, count, False, target)
        _round(work, feedback.reach, first, target, weights, places, shared, stored.divides, scales)
    descend(work, feedback, E2M1, -_TOP, _TOP)
    packed = np.empty((n, columns // 2), np.uint8)
    _pack(rows_of(work.levels, places, n).numpy(), packed)
    bad = int((~torch.isfinite(rows)).view(n, -1, BLOCK).any(-1).sum())
    return Packed((packed, scales, *stored_once(stored, rows.dtype, known)), bad)


@compiled
def _round(
    work: Lines,
    reach: np.ndarray,
    first: int,
    target: np.ndarray,
    weights: np.ndarray,
    places: np.ndarray,
    shared: np.float32,
    divides: bool,
    scales: np.ndarray,
) -> None:
    """Scales and levels of the columns in ``target``, block after block."""
    columns = len(reach)
    lines = len(work.values) // columns
    count, blocks = len(target) // lines, columns // BLOCK
    values, parts = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.float32)
    for line in range(lines):
        for start in range(first, first + count, BLOCK):
            at, block = line * count + start - first, start // BLOCK
            add_reach(work.errors, reach, line * columns, start, BLOCK, first, start, target, at)
            ours = weights[start : start + BLOCK]
            for lane in range(LANES):
                for i in range(BLOCK):
                    values[i] = bits_of(target[at + places[start + i] - start, lane])
                scale = searched_scale(values, ours, shared, divides, AS_IT_IS, parts)
                work.scales[line * blocks + block, lane] = step_of(scale, shared, divides)
                if line * LANES + lane < len(scales):
                    scales[line * LANES + lane, block] = scale
            settle_group(work, reach, line, start, BLOCK, False, target, at, E2M1, -_TOP, _TOP)


@compiled
def _pack(levels: np.ndarray, packed: np.ndarray) -> None:
    for row in range(len(packed)):
        for i in range(packed.shape[1]):
            packed[row, i] = _code(levels[row, 2 * i]) | _code(levels[row, 2 * i + 1]) << np.uint32(4)


@compiled
def _code(level: np.float32) -> np.uint32:
    return np.uint32(e2m1_code(abs(level)) | (np.uint32(8) if level < 0 else np.uint32(0)))
