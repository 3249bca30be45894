"""The encoder of each ggml type, behind the protocol that plans hold (``qexport.formats.plan.Encoder``).

Floats go through torch, the types of ``native.KERNELS`` through our own kernels, the others through ggml's
reference encoders. Whatever the source's dtype, the numbers are those of float32: llama.cpp
widens first, too. Our kernels widen bfloat16 as they read it; otherwise it happens a few hundred thousand
values at a time, so an encoder needs about a megabyte besides its rows and its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.codecs.encoder_parts import RowByRow, RowEncoder
from qexport.codecs.floats import FLOAT_CODECS
from qexport.codecs.ggml_types import GGML_TYPES, ggml_type
from qexport.codecs.native import KERNELS
from qexport.codecs.weighted_encoders import GgmlEncoder, NativeEncoder
from qexport.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch


def uses_importance(type_name: str) -> bool:
    """Whether importance changes the bytes of this type: not for floats and Q8_0."""
    return ggml_type(type_name).name not in (*FLOAT_CODECS, "Q8_0")


def make_encoder(
    type_name: str, importance: np.ndarray | None = None, rows_per_matrix: int | None = None
) -> RowEncoder:
    """The encoder of ``type_name``.

    Args:
        type_name: a name of :data:`~qexport.codecs.ggml_types.GGML_TYPES`.
        importance: mean squared inputs, float32 ``(columns,)`` for all rows, or ``(matrices, columns)`` for
            stacked experts; ignored by types that have no use for it.
        rows_per_matrix: rows of one expert, needed with more than one row of importance.
    """
    kind = ggml_type(type_name)
    if kind.name in FLOAT_CODECS:
        return FloatEncoder(kind.name)
    encoder = NativeEncoder if kind.name in KERNELS else GgmlEncoder
    if importance is None or not uses_importance(kind.name):
        return encoder(kind.name)
    table = importance[None, :] if importance.ndim == 1 else importance
    return encoder(kind.name, table, rows_per_matrix)


@dataclass(frozen=True)
class FloatEncoder(RowByRow):
    """F32, F16 or BF16."""

    type_name: str

    def row_bytes(self, columns: int) -> int:
        return GGML_TYPES[self.type_name].row_bytes(columns)

    def encode(self, rows: torch.Tensor, first_row: int) -> np.ndarray:
        """Packed rows. Raises InputError where a finite value has become infinite."""
        import numpy as np
        import torch

        packed = FLOAT_CODECS[self.type_name](rows)
        if self.type_name == "F16" and rows.dtype != torch.float16 and len(rows):
            infinite = (packed.view(np.uint16) & np.uint16(0x7FFF)) == 0x7C00
            if infinite.any() and (lost := int((torch.from_numpy(infinite) & rows.isfinite()).sum())):
                raise InputError(
                    f"F16 cannot hold {lost} of the values, the largest is {float(rows.abs().max()):g}",
                    hint="use BF16 or F32 for this tensor",
                )
        return packed
