"""The largest magnitude of rows, compared as integers: floats of one sign are in the order of their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qexport.codecs.jit import compiled
from qexport.errors import UsageProblem

# The bits of infinity: magnitudes are below, NaNs above.
_INFINITY = {
    torch.bfloat16: np.uint16(0x7F80),
    torch.float16: np.uint16(0x7C00),
    torch.float32: np.uint32(0x7F800000),
}


def largest_in(rows: torch.Tensor) -> float:
    """The largest finite magnitude of ``(n, columns)`` rows.

    Raises:
        UsageProblem: another shape or dtype.
    """
    if rows.dtype not in _INFINITY or rows.ndim != 2:
        raise UsageProblem(f"rows of {rows.dtype}, shape {tuple(rows.shape)}, have no largest magnitude here")
    word = torch.uint32 if rows.dtype == torch.float32 else torch.uint16
    # A file may place a tensor at any byte; numba would compile a second kernel for unaligned rows.
    bits = np.require(rows.contiguous().view(word).numpy(), requirements=["C", "A"])
    top = np.zeros(1, bits.dtype)
    _largest(bits, _INFINITY[rows.dtype], top)
    return float(torch.from_numpy(top).view(rows.dtype))


@compiled
def _largest(bits: np.ndarray, infinity: Any, top: np.ndarray) -> None:
    """Into ``top``: the largest of ``bits`` without their signs, of those below ``infinity``."""
    sign_less = bits.dtype.type(-1) >> bits.dtype.type(1)
    best = bits.dtype.type(0)
    for row in range(bits.shape[0]):
        values = bits[row]
        for i in range(len(values)):
            found = values[i] & sign_less
            best = max(best, found if found < infinity else bits.dtype.type(0))
    top[0] = best
