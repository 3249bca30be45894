"""MLX's encoders, behind the protocol that plans hold: streams of packed weights, scales and, if any, biases.

Values are rounded to the dtype of the model first, as mlx-lm casts before it quantizes; scales and biases
come in that dtype. Packed words are MLX's uint32, little-endian, so their bytes are the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.codecs.encoder_parts import RowByRow, chunk_rows, unrepresentable
from qexport.errors import UsageProblem

if TYPE_CHECKING:
    import numpy as np
    import torch


_EVEN = 32  # rows that the weighted fit works on at once
_WIDTHS = {"BF16": 16, "F16": 13, "F32": 0}  # bits of float32's mantissa that the dtype lacks


def _dtype(name: str) -> torch.dtype:
    import torch

    return {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[name]


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    import torch

    raw: np.ndarray = tensor.contiguous().view(torch.uint8).numpy()
    return raw


@dataclass(frozen=True, eq=False, repr=False)
class MlxAffineEncoder(RowByRow):
    """Affine groups: streams packed weight, scales, biases.

    Attributes:
        bits, group: of the codes, as :mod:`qexport.codecs.mlx_affine` knows them.
        dtype: ``BF16``, ``F16`` or ``F32``: of scales and biases, and of the values before.
        importance: mean squared inputs, float32 ``(matrices, columns)``; scale and bias are fitted to them.
        rows_per_matrix: rows of one expert, needed with more than one row of importance.
    """

    bits: int
    group: int
    dtype: str = "BF16"
    importance: np.ndarray | None = None
    rows_per_matrix: int | None = None

    def __post_init__(self) -> None:
        table = self.importance
        if table is None:
            return
        if table.ndim != 2 or table.dtype.name != "float32":
            raise UsageProblem(
                f"importance must be float32 (matrices, columns), not {table.dtype} {table.shape}"
            )
        if len(table) > 1 and not self.rows_per_matrix:
            raise UsageProblem(f"importance for {len(table)} matrices needs rows_per_matrix")

    def __repr__(self) -> str:
        name = f"MlxAffineEncoder({self.bits}, {self.group}, {self.dtype!r}"
        if self.importance is None:
            return name + ")"
        weights = "<" + "x".join(str(size) for size in self.importance.shape) + ">"
        return f"{name}, importance={weights}, rows_per_matrix={self.rows_per_matrix})"

    @property
    def type_name(self) -> str:
        """``6-bit g64``."""
        return f"{self.bits}-bit g{self.group}"

    def encode(self, rows: torch.Tensor, first_row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bytes of packed weights, scales and biases. Raises InputError for values that are not finite."""
        import torch

        from qexport.codecs import mlx_affine

        n, columns = rows.shape
        dtype = _dtype(self.dtype)
        if self.importance is None:
            made = mlx_affine.quantize(rows.to(dtype), self.bits, self.group)
            packed, scales, biases, bad = made.packed, made.scales, made.biases, made.bad
        else:
            packed, wide_scales, wide_biases = _room(n, columns, self.bits, self.group)
            bad = 0
            for start, stop, weights in self._runs(first_row, n):
                bad += self._fit(
                    rows[start:stop].to(dtype), weights, packed[start:stop], wide_scales[start:stop],
                    wide_biases[start:stop],
                )  # fmt: skip
            scales, biases = (torch.from_numpy(wide).to(dtype) for wide in (wide_scales, wide_biases))
        if bad:
            raise unrepresentable(self.type_name, first_row, n, "NaN, infinity, or too far apart for float32")
        return packed, _bytes(scales), _bytes(biases)

    def _runs(self, first_row: int, n: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Runs of rows that share importance, and that importance, scaled so that its mean is 1."""
        import numpy as np

        assert self.importance is not None
        height = self.rows_per_matrix if len(self.importance) > 1 else None
        start = 0
        while start < n:
            matrix, inside = divmod(first_row + start, height) if height else (0, 0)
            if matrix >= len(self.importance):
                raise UsageProblem(f"row {first_row + start} is beyond {len(self.importance)} matrices")
            stop = min(n, start + height - inside) if height else n
            weights = self.importance[matrix]
            mean = float(weights.mean(dtype=np.float64))
            yield start, stop, (weights / np.float32(mean) if mean > 0 else np.ones_like(weights))
            start = stop

    def _fit(
        self,
        rows: torch.Tensor,
        weights: np.ndarray,
        packed: np.ndarray,
        scales: np.ndarray,
        biases: np.ndarray,
    ) -> int:
        import numpy as np
        import torch

        from qexport.codecs.mlx_weighted import fit_into

        columns, dropped, bad = rows.shape[1], _WIDTHS[self.dtype], 0
        halves, words = np.empty((0, columns), np.uint16), np.empty((0, columns), np.uint32)
        step = chunk_rows(rows, _EVEN) if rows.dtype == torch.float16 else max(1, len(rows))
        for start in range(0, len(rows), step):
            part, span = rows[start : start + step], slice(start, start + step)
            if part.dtype == torch.bfloat16:
                halves = _plain(part.contiguous().view(torch.uint16).numpy())
            else:
                words = _plain(part.to(torch.float32).contiguous().view(torch.uint32).numpy())
            bad += fit_into(
                halves,
                words,
                weights,
                self.bits,
                self.group,
                dropped,
                packed[span],
                scales[span],
                biases[span],
            )
        return bad


@dataclass(frozen=True)
class MlxFloatEncoder(RowByRow):
    """``mxfp4``, ``mxfp8`` or ``nvfp4``: streams packed weight, scales."""

    mode: str
    dtype: str = "BF16"

    @property
    def type_name(self) -> str:
        return self.mode

    def encode(self, rows: torch.Tensor, first_row: int) -> tuple[np.ndarray, np.ndarray]:
        """Bytes of packed weights and scales. Raises InputError for values that are not finite."""
        from qexport.codecs import mlx_float

        made = mlx_float.quantize(rows.to(_dtype(self.dtype)), self.mode)
        if made.bad:
            values = f"NaN, infinity, or too large for {self.mode}'s scales"
            raise unrepresentable(self.type_name, first_row, len(rows), values)
        return made.packed, made.scales


@dataclass(frozen=True)
class RoundedEncoder(RowByRow):
    """Floats rounded to ``through`` and then to ``type_name``: what two casts one after another give."""

    type_name: str
    through: str

    def encode(self, rows: torch.Tensor, first_row: int) -> np.ndarray:
        """Bytes of the rows."""
        from qexport.codecs.encoders import FloatEncoder

        return FloatEncoder(self.type_name).encode(rows.to(_dtype(self.through)), first_row)


def _room(n: int, columns: int, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np

    from qexport.codecs import mlx_affine

    mlx_affine.check(columns, bits, group)
    return (
        np.empty((n, columns * bits // 8), np.uint8),
        np.empty((n, columns // group), np.float32),
        np.empty((n, columns // group), np.float32),
    )


def _plain(array: np.ndarray) -> np.ndarray:
    """The array, or a copy where numba would compile another kernel: unaligned, strided or read-only."""
    import numpy as np

    return np.require(array, requirements=["C", "A", "W"])
