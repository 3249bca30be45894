"""FP8 E4M3 with one float32 scale for a whole matrix: ModelOpt's ``FP8``, which NVIDIA's mixed recipes use.

A value is ``code * scale`` with ``scale = amax / 448``; the scale of a matrix of zeros is 1. A code is
``x / scale`` in float32, rounded to the rows' dtype and then to E4M3: ModelOpt divides in the model's dtype
(https://github.com/NVIDIA/TensorRT-Model-Optimizer, ``to_quantized_weight``). The scale needs every row
beforehand, so the encoder comes with a survey; those of fused matrices share it.

Left out: ``input_scale``, the scale of activations, which only running the model can find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qexport.codecs.e4m3 import E4M3_MAX, e4m3_bits
from qexport.codecs.encoder_parts import unrepresentable
from qexport.codecs.jit import compiled, float_of
from qexport.codecs.narrow import narrow, rounding_of
from qexport.codecs.source_bits import source_bits

if TYPE_CHECKING:
    import torch

    from qexport.codecs.amax import AmaxSurvey

__all__ = ["Fp8TensorEncoder", "tensor_scale"]

_ONE = np.float32(1)
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


def tensor_scale(amax: float) -> np.float32:
    """The scale of a matrix whose largest magnitude is ``amax``.

    It is 1 where float32 has no normal number for it, and such values become zeros.
    """
    scale = np.float32(amax) / E4M3_MAX
    return np.float32(scale) if scale >= np.finfo(np.float32).tiny else _ONE


@dataclass(frozen=True)
class Fp8TensorEncoder:
    """Two streams: a byte for each value, and a float32 scale for each matrix, given with its first row."""

    survey: AmaxSurvey
    type_name: str = "F8_E4M3"

    @property
    def rows_together(self) -> int:
        return 1

    def encode(self, rows: torch.Tensor, first_row: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes, uint8 ``(n, columns)``, and the float32 scales of the matrices that begin in ``rows``.

        Raises:
            InputError: NaN or infinity.
        """
        codes = np.empty(tuple(rows.shape), np.uint8)
        scales: list[np.float32] = []
        bad, rounding = 0, rounding_of(rows.dtype)
        for matrix, start, stop in self.survey.parts(first_row, len(rows)):
            scale = tensor_scale(self.survey.amax(matrix))
            source, shift = source_bits(rows[start:stop])
            bad += int(_quantize(source, shift, scale, rounding, codes[start:stop]))
            if first_row + start == matrix * (self.survey.rows_per_matrix or 0):
                scales.append(scale)
        if bad:
            raise unrepresentable(self.type_name, first_row, len(rows), "NaN or infinity")
        return codes, np.array(scales, np.float32)


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
