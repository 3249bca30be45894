"""Activations in four bits, as W4A4 runtimes have them: NVFP4 whose scales of 16 are found as they come."""

from __future__ import annotations

import numpy as np
import torch

from qexport.codecs.decoded import microscaled
from qexport.codecs.nvfp4 import quantize


def rounded_inputs(inputs: torch.Tensor, scale: float) -> torch.Tensor:
    """``(tokens, columns)`` there and back, in their own dtype.

    Args:
        scale: the global scale to multiply with, 2688 for the largest input that it leaves room for. What is
            larger is cut off.
    """
    rows = inputs.detach().to("cpu", torch.float32).contiguous()
    made = quantize(rows, np.float32(scale), divides=True)
    codes, scales = torch.from_numpy(made.packed), torch.from_numpy(made.scales)
    values = microscaled(codes, scales, 4, shared=torch.tensor(np.float32(scale)), divides=True)
    return values.to(inputs)
