"""Encoders whose bytes depend on importance: our own kernels, and ggml's for the types we have none for.

Importance is one row for a whole matrix, or one for each of the experts stacked in a tensor; rows are split
where it changes, and otherwise only as needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.codecs import ggml, native
from qexport.codecs.encoder_parts import RowByRow, chunk_rows, empty_output, unrepresentable
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.errors import UsageProblem

if TYPE_CHECKING:
    import numpy as np
    import torch


_EVEN = 32  # rows that a kernel works on at once


@dataclass(frozen=True, eq=False, repr=False)
class _Weighted(RowByRow):
    """A type and its ``importance``, float32 ``(matrices, columns)`` or None."""

    type_name: str
    importance: np.ndarray | None = None
    rows_per_matrix: int | None = None

    def __post_init__(self) -> None:
        if self.importance is None:
            return
        if self.importance.ndim != 2 or self.importance.dtype.name != "float32":
            kind = f"{self.importance.dtype} {self.importance.shape}"
            raise UsageProblem(f"importance must be float32 (matrices, columns), not {kind}")
        if len(self.importance) > 1 and not self.rows_per_matrix:
            raise UsageProblem(f"importance for {len(self.importance)} matrices needs rows_per_matrix")

    def __repr__(self) -> str:
        name = type(self).__name__
        if self.importance is None:
            return f"{name}({self.type_name!r})"
        weights = "<" + "x".join(str(size) for size in self.importance.shape) + ">"
        return f"{name}({self.type_name!r}, importance={weights}, rows_per_matrix={self.rows_per_matrix})"

    def row_bytes(self, columns: int) -> int:
        return GGML_TYPES[self.type_name].row_bytes(columns)

    def _importance_at(self, row: int) -> tuple[np.ndarray | None, int]:
        """Importance of an output row, and how many rows from there share it."""
        if self.importance is None:
            return None, 1 << 62
        if len(self.importance) == 1 or not self.rows_per_matrix:
            return self.importance[0], 1 << 62
        matrix, inside = divmod(row, self.rows_per_matrix)
        if matrix >= len(self.importance):
            raise UsageProblem(f"row {row} is beyond the {len(self.importance)} matrices of its importance")
        return self.importance[matrix], self.rows_per_matrix - inside


@dataclass(frozen=True, eq=False, repr=False)
class NativeEncoder(_Weighted):
    """A type of ``native.KERNELS``; bfloat16 and float32 rows are read where they lie."""

    def encode(self, rows: torch.Tensor, first_row: int) -> np.ndarray:
        """Packed rows. Raises InputError for values that are not finite or too large for the type."""
        import torch

        packed = empty_output(self, rows)
        direct = rows.dtype in (torch.bfloat16, torch.float32)
        chunk = max(1, len(rows)) if direct else chunk_rows(rows, _EVEN)
        bad = start = 0
        while start < len(rows):
            weights, left = self._importance_at(first_row + start)
            stop = min(len(rows), start + chunk, start + left)
            part = rows[start:stop]
            part = part if direct else part.to(torch.float32)
            bad += native.quantize_into(self.type_name, part, weights, packed[start:stop])
            start = stop
        if bad:
            raise unrepresentable(self.type_name, first_row, len(rows))
        return packed


@dataclass(frozen=True, eq=False, repr=False)
class GgmlEncoder(_Weighted):
    """A type encoded by ggml's reference encoder."""

    def encode(self, rows: torch.Tensor, first_row: int) -> np.ndarray:
        """Packed rows. Raises InputError for values that are not finite or too large for the type."""
        import numpy as np
        import torch

        packed = empty_output(self, rows)
        chunk = chunk_rows(rows)
        start = 0
        while start < len(rows):
            weights, left = self._importance_at(first_row + start)
            stop = min(len(rows), start + chunk, start + left)
            wide = rows[start:stop].to(torch.float32).contiguous().numpy()
            if not np.isfinite(wide).all():  # a search for the best scale passes over NaN in silence
                raise unrepresentable(self.type_name, first_row + start, stop - start)
            packed[start:stop] = ggml.quantize_rows(self.type_name, wide, weights)
            start = stop
        if len(rows) and not ggml.rows_are_valid(self.type_name, packed):
            raise unrepresentable(self.type_name, first_row, len(rows))
        return packed
