"""FP8 E4M3 with one float32 scale for a whole matrix: ModelOpt's ``FP8``, which NVIDIA's mixed recipes use.

A value is ``code * scale`` with ``scale = amax / 448``; the scale of a matrix of zeros is 1. A code is
``x / scale`` in float32, rounded to the rows' dtype and then to E4M3: ModelOpt divides in the model's dtype
(https://github.com/NVIDIA/TensorRT-Model-Optimizer, ``to_quantized_weight``). The scale needs every row
beforehand.

ModelOpt stores ``input_scale`` too, the largest input it saw over 448, and readers need one: SGLang would
divide by whatever stands there. Where the largest input was measured (beside W4A4), it is that. Else, since
E4M3 keeps three bits of mantissa over fifteen powers of two, the scale only has to keep inputs below 448 and
above 2**-6. From importance, which holds the mean square of each column, the largest input is taken to be 32
times the largest column's root mean square; without it the scale is 1, as for the KV cache in NVIDIA's mixed
recipe: right for inputs that a norm has brought near 1, coarse for small ones (the outputs of attention).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qexport.codecs.contract import Fp8Matrix, Known, Packed
from qexport.codecs.jit import compiled, float_of
from qexport.codecs.small_floats import E4M3_MAX, e4m3_bits, narrow, rounding_of
from qexport.codecs.source_bits import source_bits

if TYPE_CHECKING:
    import torch


_ONE = np.float32(1)
_CREST = 32
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


def tensor_scale(amax: float) -> np.float32:
    """The scale of a matrix whose largest magnitude is ``amax``.

    It is 1 where float32 has no normal number for it, and such values become zeros.
    """
    scale = np.float32(amax) / E4M3_MAX
    return np.float32(scale) if scale >= np.finfo(np.float32).tiny else _ONE


def input_scale(known: Known) -> np.float32:
    """The scale of inputs: of the largest one, or of what the mean squares of columns make of it."""
    if known.inputs is not None:
        return tensor_scale(known.inputs)
    if known.importance is None or not (largest := float(known.importance.max())) > 0:
        return _ONE
    return np.float32(_CREST * np.sqrt(largest) / E4M3_MAX)


def encode(stored: Fp8Matrix, rows: torch.Tensor, known: Known) -> Packed:
    """Codes, uint8 ``(n, columns)``; with the first rows the float32 scales of weights and inputs."""
    source, shift = source_bits(rows)
    codes, scale = np.empty(source.shape, np.uint8), tensor_scale(known.largest)
    bad = int(_quantize(source, shift, scale, rounding_of(rows.dtype), codes))
    both = (scale, input_scale(known))
    once = (np.array([one] if known.begins else [], np.float32) for one in both)
    return Packed((codes, *once), bad)


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
