"""FP8, in tiles or with one scale for a matrix, as plans hold it (``qexport.formats.plan.Encoder``).

Two streams for the same rows: codes, and the scales of their tiles. Experts stacked in a tensor need nothing
special as long as each has a multiple of 128 rows: no tile then lies in two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.codecs.encoder_parts import unrepresentable

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qexport.codecs.amax import AmaxSurvey


FP8_TILE = 128  # fp8_block.TILE, without numba


@dataclass(frozen=True)
class Fp8BlockEncoder:
    """Tiles of 128 by 128; ``style`` as in :class:`qexport.codecs.fp8_block.Style`."""

    style: str = "native"
    type_name: str = "F8_E4M3"

    @property
    def rows_together(self) -> int:
        return FP8_TILE

    @property
    def survey(self) -> None:
        return None

    def scale_dtype(self, source: str) -> str:
        """The stored dtype of scales for a tensor of dtype ``source``, both as safetensors spells them."""
        return "BF16" if self.style == "native" else source

    def encode(self, rows: torch.Tensor, first_row: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes, uint8 ``(n, columns)``, and scales as bytes ``(n / 128, columns / 128 * size)``.

        Raises:
            InputError: a tile holds a NaN or infinity.
            UsageProblem: the rows do not divide into tiles.
        """
        import torch

        from qexport.codecs.fp8_block import Style, quantize

        made = quantize(rows, Style(self.style))
        if made.bad:
            raise unrepresentable(self.type_name, first_row, len(rows), "NaN or infinity")
        return made.codes, made.scales.view(torch.uint8).numpy()


@dataclass(frozen=True)
class Fp8TensorEncoder:
    """A float32 scale for each matrix, given with its first row; the survey has found its magnitude."""

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
        import numpy as np

        from qexport.codecs.fp8_tensor import encode, tensor_scale

        codes = np.empty(tuple(rows.shape), np.uint8)
        scales: list[np.float32] = []
        bad = 0
        for matrix, start, stop in self.survey.parts(first_row, len(rows)):
            scale = tensor_scale(self.survey.amax(matrix))
            bad += encode(rows[start:stop], scale, codes[start:stop])
            if first_row + start == matrix * (self.survey.rows_per_matrix or 0):
                scales.append(scale)
        if bad:
            raise unrepresentable(self.type_name, first_row, len(rows), "NaN or infinity")
        return codes, np.array(scales, np.float32)
