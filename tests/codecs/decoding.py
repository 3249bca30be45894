"""What the package's readers of folders make of codes and scales, for tests that compare with peers."""

from __future__ import annotations

import numpy as np
import torch

from qexport.codecs.decoded import e2m1, e4m3, e8m0, grouped
from qexport.codecs.fp8_block import TILE
from qexport.codecs.mlx_float import FLOAT_MODES


def fp8_tiles(codes: np.ndarray, scales: torch.Tensor) -> torch.Tensor:
    wide = scales.float().repeat_interleave(TILE, dim=0).repeat_interleave(TILE, dim=1)
    return e4m3(torch.from_numpy(codes)).mul_(wide)


def mlx_floats(packed: np.ndarray, scales: np.ndarray, mode: str) -> torch.Tensor:
    known, stored = FLOAT_MODES[mode], torch.from_numpy(scales)
    values = (e4m3 if known.bits == 8 else e2m1)(torch.from_numpy(packed))
    return grouped(values, e8m0(stored) if known.power_of_two else e4m3(stored))


def nvfp4(
    packed: np.ndarray, scales: np.ndarray, shared: np.float32, *, divides: bool = False
) -> torch.Tensor:
    """``divides``: the scales are divided by ``shared`` (compressed-tensors), not multiplied (ModelOpt)."""
    wide, one = e4m3(torch.from_numpy(scales)), float(np.float32(shared))
    return grouped(e2m1(torch.from_numpy(packed)), wide / one if divides else wide * one)
