"""The NVFP4 encoder: three streams, for matrices that may share a global scale and may be stacked.

Streams: packed levels, uint8 ``(n, columns / 2)``; block scales, E4M3 ``(n, columns / 16)``; and float32
global scales, one for each matrix, given with its first row. The global scale follows from the largest
magnitude of all matrices that a runtime fuses, so the encoder comes with a survey which they share; a stack
of experts has one magnitude, and one global scale, for each expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from qexport.codecs.encoder_parts import unrepresentable
from qexport.errors import UsageProblem

if TYPE_CHECKING:
    import torch

    from qexport.codecs.amax import AmaxSurvey
    from qexport.codecs.nvfp4 import Nvfp4Rows


ScaleRule = Literal["max", "mse"]


@dataclass(frozen=True, eq=False)
class Nvfp4Encoder:
    """NVFP4 as ModelOpt or, with ``divides``, as compressed-tensors stores it.

    Attributes:
        survey: of the largest magnitudes; shared by the encoders of fused matrices.
        divides: round as compressed-tensors does, and store the inverse of the global scale.
        scales: ``max`` for those libraries' own block scales, ``mse`` to search for better ones.
        importance: mean squared inputs for that search, float32 ``(1, columns)`` or ``(matrices, columns)``.
    """

    survey: AmaxSurvey
    divides: bool = False
    scales: ScaleRule = "max"
    importance: np.ndarray | None = None
    type_name: str = "NVFP4"

    def __post_init__(self) -> None:
        if self.importance is None:
            return
        if self.scales == "max":
            raise UsageProblem("importance is of no use without a search for scales")
        if self.importance.ndim != 2 or len(self.importance) not in (1, self.survey.matrices):
            raise UsageProblem(
                f"importance {self.importance.shape} does not belong to {self.survey.matrices} matrices"
            )

    def __repr__(self) -> str:
        weights = "" if self.importance is None else f", importance=<{len(self.importance)} rows>"
        return f"Nvfp4Encoder(divides={self.divides}, scales={self.scales!r}{weights})"

    @property
    def rows_together(self) -> int:
        return 1

    def encode(self, rows: torch.Tensor, first_row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three streams of ``(n, columns)`` rows.

        Raises:
            InputError: NaN or infinity.
        """
        from qexport.codecs.nvfp4 import divisor, global_scale

        n, columns = rows.shape
        packed, scales = np.empty((n, columns // 2), np.uint8), np.empty((n, columns // 16), np.uint8)
        shared: list[np.float32] = []
        bad = 0
        for matrix, start, stop in self.survey.parts(first_row, n):
            amax = self.survey.amax(matrix)
            one = divisor(amax, rows.dtype) if self.divides else global_scale(amax)
            made = self._quantize(rows[start:stop], one, matrix)
            packed[start:stop], scales[start:stop] = made.packed, made.scales
            bad += made.bad
            if first_row + start == matrix * (self.survey.rows_per_matrix or 0):
                shared.append(one)
        if bad:
            raise unrepresentable(self.type_name, first_row, n, "NaN or infinity")
        return packed, scales, np.array(shared, np.float32)

    def _quantize(self, rows: torch.Tensor, shared: np.float32, matrix: int) -> Nvfp4Rows:
        from qexport.codecs.nvfp4 import quantize
        from qexport.codecs.nvfp4_search import quantize_searched

        if self.scales == "max":
            return quantize(rows, shared, divides=self.divides)
        weights = None
        if self.importance is not None:
            weights = self.importance[matrix if len(self.importance) > 1 else 0]
        return quantize_searched(rows, shared, weights, divides=self.divides)
