"""Scales of FP8 activations in NVIDIA's mixed recipe, without running the model.

ModelOpt stores ``input_scale``, the largest input it saw over 448, and readers need one: SGLang would divide
by whatever stands there. E4M3 keeps three bits of mantissa over fifteen powers of two, so the scale only has
to keep inputs below 448 and above 2**-6. With an importance matrix, which holds the mean square of each
column, the largest input is taken to be 32 times the largest column's root mean square; without one the scale
is 1, as for the KV cache in that recipe: right for inputs that a norm has brought near 1, coarse for small
ones (the outputs of attention).

Left out: exact maxima, which calibration does not collect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from qexport.codecs.amax import AmaxSurvey
    from qexport.codecs.fp8_encoder import Fp8TensorEncoder


_CREST = 32


def input_scale(importance: np.ndarray | None) -> np.float32:
    """The scale for a matrix whose columns have these mean squared inputs, ``(1, columns)``."""
    if importance is None or not (largest := float(importance.max())) > 0:
        return np.float32(1)
    from qexport.codecs.e4m3 import E4M3_MAX

    return np.float32(_CREST * np.sqrt(largest) / E4M3_MAX)


@dataclass(frozen=True)
class Fp8StaticEncoder:
    """An FP8 matrix with one scale, and the scale of its inputs as a third stream."""

    weight: Fp8TensorEncoder
    input_scale: np.float32

    @property
    def type_name(self) -> str:
        return self.weight.type_name

    @property
    def rows_together(self) -> int:
        return self.weight.rows_together

    @property
    def survey(self) -> AmaxSurvey:
        return self.weight.survey

    def encode(self, rows: torch.Tensor, first_row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes, the weight's scale and the inputs' scale, both with the first row."""
        codes, scales = self.weight.encode(rows, first_row)
        return codes, scales, np.full(len(scales), self.input_scale, np.float32)
