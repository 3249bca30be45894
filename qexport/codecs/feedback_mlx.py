"""Error feedback in MLX's affine groups: each group's scale and bias are fitted when it is reached.

The fit is that to importance (:mod:`qexport.codecs.mlx_weighted`), of what the group's columns have become.
"""

from __future__ import annotations

import numpy as np
import torch

from qexport.checkpoint.tensors import torch_dtype
from qexport.codecs import mlx_affine
from qexport.codecs.contract import Known, MlxAffine, Packed
from qexport.codecs.feedback import given
from qexport.codecs.feedback_columns import (
    UNIFORM,
    Lines,
    descend,
    expect,
    lines_for,
    rows_of,
    settle,
    work_on,
)
from qexport.codecs.jit import compiled
from qexport.codecs.lanes import load, store
from qexport.codecs.mlx_encoders import bytes_of, proportions
from qexport.codecs.mlx_weighted import fit_group, fit_of
from qexport.codecs.small_floats import rounding_of


def encode(stored: MlxAffine, rows: torch.Tensor, known: Known) -> Packed:
    """Packed weights, scales, biases; the contract is in :mod:`qexport.codecs.contract`."""
    feedback = given(known)
    dtype = torch_dtype(stored.dtype)
    n, columns = rows.shape
    bits, group, top = stored.bits, stored.group, (1 << stored.bits) - 1
    mlx_affine.check(columns, bits, group)
    importance = np.ones(columns, np.float32) if known.importance is None else known.importance
    weights, places = proportions(importance), np.argsort(feedback.order)
    work = work_on(rows.to(dtype), feedback, group)
    target = lines_for(work, group, columns)
    dropped, bad = int(rounding_of(dtype)), 0
    for first in range(0, columns, group):
        span = slice(first, first + group)
        expect(work, feedback.reach, first, group, False, target)
        bad += _search(work, target, weights[span], places[span] - first, first // group, top, dropped)
        settle(work, feedback.reach, first, group, False, target, UNIFORM, 0, top)
    descend(work, feedback, UNIFORM, 0, top)
    packed = np.empty((n, columns * bits // 8), np.uint8)
    _pack(rows_of(work.levels, places, n).to(torch.uint8).numpy(), bits, packed)
    groups = np.arange(columns // group)
    scales, biases = (rows_of(table, groups, n).to(dtype) for table in (work.scales, -work.lows))
    return Packed((packed, bytes_of(scales), bytes_of(biases)), bad)


@compiled
def _search(
    work: Lines,
    target: np.ndarray,
    weights: np.ndarray,
    places: np.ndarray,
    number: int,
    top: int,
    dropped: int,
) -> int:
    """Scale and bias of group ``number``, for all rows; ``target`` has its columns at ``places``."""
    group = len(places)
    lines = len(target) // group
    fit, bad = fit_of(group), 0
    for line in range(lines):
        for i in range(group):
            store(fit.tile, i, load(target, line * group + places[i]))
        bad += fit_group(fit, weights, top, dropped)
        at = line * (len(work.scales) // lines) + number
        store(work.scales, at, load(fit.best, 1))
        store(work.lows, at, -load(fit.best, 2))
    return bad


@compiled
def _pack(codes: np.ndarray, bits: int, packed: np.ndarray) -> None:
    for row in range(len(codes)):
        mlx_affine.pack(codes[row], bits, packed[row])
