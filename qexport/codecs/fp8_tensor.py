"""FP8 E4M3 with one float32 scale for a whole matrix: ModelOpt's ``FP8``, which NVIDIA's mixed recipes use.

A value is ``code * scale`` with ``scale = amax / 448``; the scale of a matrix of zeros is 1. A code is
``x / scale`` in float32, rounded to the rows' dtype and then to E4M3: ModelOpt divides in the model's dtype
(https://github.com/NVIDIA/TensorRT-Model-Optimizer, ``to_quantized_weight``). The scale needs every row
beforehand, which is the survey's part (``fp8_encoder.py``).

Left out: ``input_scale``, the scale of activations, which only running the model can find.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qexport.codecs.e4m3 import E4M3_MAX, e4m3_bits
from qexport.codecs.jit import compiled, float_of
from qexport.codecs.narrow import narrow, rounding_of
from qexport.codecs.source_bits import source_bits

if TYPE_CHECKING:
    import torch


_ONE = np.float32(1)
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


def tensor_scale(amax: float) -> np.float32:
    """The scale of a matrix whose largest magnitude is ``amax``.

    It is 1 where float32 has no normal number for it, and such values become zeros.
    """
    scale = np.float32(amax) / E4M3_MAX
    return np.float32(scale) if scale >= np.finfo(np.float32).tiny else _ONE


def encode(rows: torch.Tensor, scale: np.float32, codes: np.ndarray) -> int:
    """Codes of ``rows`` into ``codes``; the number of values that are NaN or infinity."""
    source, shift = source_bits(rows)
    return int(_quantize(source, shift, scale, rounding_of(rows.dtype), codes))


@compiled
def _quantize(
    source: np.ndarray, shift: np.uint32, scale: np.float32, rounding: np.uint32, codes: np.ndarray
) -> int:
    bad = 0
    for row in range(source.shape[0]):
        values, found = source[row], codes[row]
        for i in range(len(values)):
            bits = np.uint32(np.uint32(values[i]) << shift)
            magnitude = np.uint32(bits & _MAGNITUDE)
            bad += int(magnitude >= _INFINITY)
            level = narrow(float_of(magnitude) / scale, rounding)
            sign = np.uint8((bits >> np.uint32(24)) & np.uint32(0x80))
            found[i] = np.uint8(e4m3_bits(min(level, E4M3_MAX)) | sign)
    return bad
