"""The encoder of each ggml type, behind the protocol that plans hold (``qexport.formats.plan.Encoder``).

Floats go through torch, Q8_0 through our own kernel, everything else through ggml's reference encoders.
Whatever the source's dtype, the numbers are those of float32: llama.cpp widens first, too. Widening happens
a few hundred thousand values at a time, so an encoder needs about a megabyte besides its rows and its output.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from qexport.codecs import ggml
from qexport.codecs.floats import FLOAT_CODECS
from qexport.codecs.ggml_types import GGML_TYPES, ggml_type
from qexport.errors import InputError, UsageProblem

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["FloatEncoder", "GgmlEncoder", "Q8Encoder", "RowEncoder", "make_encoder", "uses_importance"]

CHUNK_VALUES = 1 << 18  # one megabyte of float32: stays in the cache between widening and encoding


class RowEncoder(Protocol):
    """What :func:`make_encoder` returns; the same shape as the protocol in ``qexport.formats.plan``."""

    @property
    def type_name(self) -> str: ...

    def row_bytes(self, columns: int) -> int: ...

    def encode(self, rows: torch.Tensor, first_row: int) -> np.ndarray: ...


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
    if kind.name == "Q8_0":
        return Q8Encoder()
    if importance is None:
        return GgmlEncoder(kind.name)
    table = importance[None, :] if importance.ndim == 1 else importance
    return GgmlEncoder(kind.name, table, rows_per_matrix)


@dataclass(frozen=True)
class FloatEncoder:
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


@dataclass(frozen=True)
class Q8Encoder:
    """Q8_0, by our own kernel."""

    type_name: str = field(default="Q8_0", init=False, repr=False)

    def row_bytes(self, columns: int) -> int:
        return GGML_TYPES["Q8_0"].row_bytes(columns)

    def encode(self, rows: torch.Tensor, first_row: int) -> np.ndarray:
        """Packed rows. Raises InputError for values that are not finite or too large for the type."""
        import torch

        from qexport.codecs import q8_0

        packed = _empty(self, rows)
        direct = rows.dtype in (torch.bfloat16, torch.float32)
        chunk = max(1, len(rows)) if direct else _chunk_rows(rows)
        bad = 0
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            part = part if direct else part.to(torch.float32)
            bad += q8_0.quantize_into(part, packed[start : start + chunk])
        if bad:
            raise _unrepresentable("Q8_0", first_row, len(rows))
        return packed


@dataclass(frozen=True, eq=False, repr=False)
class GgmlEncoder:
    """Any other type, by ggml's reference encoder; ``importance`` is ``(matrices, columns)``."""

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
        if self.importance is None:
            return f"GgmlEncoder({self.type_name!r})"
        weights = "<" + "x".join(str(size) for size in self.importance.shape) + ">"
        rows = self.rows_per_matrix
        return f"GgmlEncoder({self.type_name!r}, importance={weights}, rows_per_matrix={rows})"

    def row_bytes(self, columns: int) -> int:
        return GGML_TYPES[self.type_name].row_bytes(columns)

    def encode(self, rows: torch.Tensor, first_row: int) -> np.ndarray:
        """Packed rows. Raises InputError for values that are not finite or too large for the type."""
        import numpy as np
        import torch

        packed = _empty(self, rows)
        chunk = _chunk_rows(rows)
        start = 0
        while start < len(rows):
            weights, left = self._importance_at(first_row + start)
            stop = min(len(rows), start + chunk, start + left)
            wide = rows[start:stop].to(torch.float32).contiguous().numpy()
            if not np.isfinite(wide).all():  # a search for the best scale passes over NaN in silence
                raise _unrepresentable(self.type_name, first_row + start, stop - start)
            packed[start:stop] = ggml.quantize_rows(self.type_name, wide, weights)
            start = stop
        if len(rows) and not ggml.rows_are_valid(self.type_name, packed):
            raise _unrepresentable(self.type_name, first_row, len(rows))
        return packed

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


def _chunk_rows(rows: torch.Tensor) -> int:
    return max(1, CHUNK_VALUES // max(1, rows.shape[1]))


def _empty(encoder: RowEncoder, rows: torch.Tensor) -> np.ndarray:
    import numpy as np

    return np.empty((len(rows), encoder.row_bytes(rows.shape[1])), np.uint8)


def _unrepresentable(type_name: str, first_row: int, count: int) -> InputError:
    return InputError(
        f"rows {first_row} to {first_row + count - 1} hold values that {type_name} cannot store: "
        "NaN, infinity, or too large for a float16 scale",
        hint="check the checkpoint for damaged weights, or store this tensor as BF16",
    )
