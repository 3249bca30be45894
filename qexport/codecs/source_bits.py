"""Rows as a kernel reads them: the bits as they lie in the checkpoint, and the shift that makes them float32.

bfloat16 is the upper half of float32, so ``bits << 16`` widens it in a register and no wider copy of the rows
is needed. float16 is widened by torch first, a copy of twice its size: pass it in pieces.
"""

from __future__ import annotations

import numpy as np
import torch

from qexport.codecs.jit import compiled
from qexport.errors import UsageProblem

SOURCE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def source_bits(rows: torch.Tensor) -> tuple[np.ndarray, np.uint32]:
    """The bits of ``(n, columns)`` rows, uint16 or uint32 in C order, and the shift to those of float32.

    Raises:
        UsageProblem: the rows are not a matrix in bfloat16, float16 or float32.
    """
    if rows.dtype not in SOURCE_DTYPES or rows.ndim != 2:
        raise UsageProblem(f"rows of {rows.dtype}, shape {tuple(rows.shape)}, cannot be quantized")
    if rows.dtype == torch.bfloat16:
        bits, shift = rows.contiguous().view(torch.uint16).numpy(), 16
    else:
        bits, shift = rows.to(torch.float32).contiguous().view(torch.uint32).numpy(), 0
    # A file may place a tensor at any byte; numba would compile a second kernel for unaligned rows.
    return np.require(bits, requirements=["C", "A"]), np.uint32(shift)


@compiled
def widen(values: np.ndarray, shift: np.uint32, out: np.ndarray) -> None:
    """Bits as they lie, to those of float32 in ``out``, uint32 of the same length."""
    for i in range(len(out)):
        out[i] = np.uint32(values[i]) << shift
