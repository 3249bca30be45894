"""Arrangements undone: a tensor that a format stores in another order, shape or offset, as the source has it.

GGUF interleaves rotary rows, tiles value heads, adds one to norms and stores ``-exp(A_log)``; MLX adds one to
norms and turns the convolution's axes. What a format does to a tensor is an
:class:`~qexport.formats.plan.Arrangement`; here it is turned round, row by row as rows are asked for. The
rounding of the stored form stays in: a norm that was stored as bf16(1 + w) comes back as that minus 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import matrix_shape

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qexport.artifacts.rows import Decoded
    from qexport.formats.plan import Arrangement


# Rows between wanted ones that are read with them: cheaper than another call.
_GAP = 64


def turned(decoded: Decoded, arrangement: Arrangement, shape: tuple[int, ...]) -> Decoded:
    """``decoded``, which is in ``arrangement``, as the tensor of ``shape`` that was arranged.

    Raises:
        ValueError: the arrangement keeps only some of the rows, so there is no way back.
    """
    plain = arrangement.op == "none" and arrangement.row_order is None and arrangement.column_order is None
    return decoded if plain and decoded.shape == shape else _Turned(decoded, arrangement, shape)


class _Turned:
    """One tensor, turned back as it is read."""

    def __init__(self, decoded: Decoded, arrangement: Arrangement, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dtype = decoded.dtype if arrangement.op == "none" else "F32"
        self._decoded = decoded
        self._op = arrangement.op
        self._rows = _inverse(arrangement.row_order)
        self._columns = _inverse(arrangement.column_order)
        (rows, self._width), (stored_rows, width) = matrix_shape(shape), matrix_shape(decoded.shape)
        self._each = rows // stored_rows  # rows of the source that are one as it is stored
        if rows * self._width != stored_rows * width or rows % stored_rows:
            raise ValueError(f"{decoded.shape} cannot be {shape} in another arrangement")

    def read(self, start: int, stop: int) -> torch.Tensor:
        import torch

        first = start // self._each
        rows = self._wanted(first, -(-stop // self._each))
        if self._columns is not None:
            rows = rows.index_select(1, torch.from_numpy(self._columns))
        if self._each > 1:
            rows = rows.reshape(-1, self._width)[start - first * self._each : stop - first * self._each]
        if self._op == "add_one":
            return rows.float() - 1
        return torch.log(-rows.float()) if self._op == "neg_exp" else rows

    def _wanted(self, start: int, stop: int) -> torch.Tensor:
        import numpy as np
        import torch

        if self._rows is None:
            return self._decoded.read(start, stop)
        stored = np.unique(self._rows[start:stop])
        breaks = np.flatnonzero(np.diff(stored) > _GAP) + 1
        ranges = [(int(part[0]), int(part[-1]) + 1) for part in np.split(stored, breaks) if len(part)]
        found = [self._decoded.read(low, high) for low, high in ranges]
        numbers = np.concatenate([np.arange(low, high) for low, high in ranges])
        places = np.searchsorted(numbers, self._rows[start:stop])
        return torch.cat(found).index_select(0, torch.from_numpy(places))


class Folded:
    """The same values in longer rows: MLX stores a convolution as ``(channels, 4, 1)``."""

    def __init__(self, decoded: Decoded, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dtype = decoded.dtype
        self._decoded = decoded
        rows, columns = matrix_shape(shape)
        stored_rows, width = matrix_shape(decoded.shape)
        if rows * columns != stored_rows * width or stored_rows % rows:
            raise ValueError(f"{decoded.shape} cannot be {shape}")
        self._each = stored_rows // rows

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self._decoded.read(start * self._each, stop * self._each).reshape(stop - start, -1)


def _inverse(order: np.ndarray | None) -> np.ndarray | None:
    import numpy as np

    if order is None:
        return None
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return back
