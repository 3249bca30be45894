"""Reading the rows of a logical tensor, arranged as an output wants them.

Arithmetic follows
llama.cpp's converter: float16 stays float16, everything else is computed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import LogicalTensor, matrix_shape, torch_dtype

if TYPE_CHECKING:
    import torch

    from qexport.formats.plan import Arrangement


def read_rows(tensor: LogicalTensor, start: int, stop: int) -> torch.Tensor:
    """Rows ``[start, stop)`` as ``(stop - start, columns)``, in the logical dtype."""
    import torch

    parts = [
        piece.checkpoint.read_rows(piece.name, piece.start, piece.stop) for piece in tensor.rows(start, stop)
    ]
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)
    return rows.to(torch_dtype(tensor.dtype))


def arranged_shape(tensor: LogicalTensor, arrangement: Arrangement) -> tuple[int, ...]:
    """The shape of the output tensor."""
    return tensor.shape if arrangement.shape is None else arrangement.shape


def source_ranges(arrangement: Arrangement, start: int, stop: int) -> list[tuple[int, int]]:
    """The source rows behind output rows ``[start, stop)``, as few ranges as there are, ascending."""
    import numpy as np

    if arrangement.row_order is None:
        return [(start, stop)]
    rows = np.unique(arrangement.row_order[start:stop])
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(rows, breaks)]


def arranged_rows(tensor: LogicalTensor, arrangement: Arrangement, start: int, stop: int) -> torch.Tensor:
    """Output rows ``[start, stop)`` of ``tensor`` under ``arrangement``; reads each row it needs once."""
    import numpy as np
    import torch

    ranges = source_ranges(arrangement, start, stop)
    columns = matrix_shape(arranged_shape(tensor, arrangement))[1]
    each = _rows_in_one(tensor, columns)
    parts = [read_rows(tensor, low * each, high * each).reshape(-1, columns) for low, high in ranges]
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)
    if arrangement.row_order is not None:
        stored = np.concatenate([np.arange(low, high) for low, high in ranges])
        places = np.searchsorted(stored, arrangement.row_order[start:stop])
        rows = rows.index_select(0, torch.from_numpy(places))  # copies whole rows; indexing goes by value
    if arrangement.column_order is not None:
        rows = rows.index_select(1, torch.from_numpy(arrangement.column_order))
    if arrangement.op == "none":
        return rows
    wide = rows if rows.dtype == torch.float16 else rows.float()
    if arrangement.op == "add_one":
        return wide + 1
    # Minus infinity stays what it is: its exponential is zero, which would hide it from who looks for it.
    return torch.where(wide.isfinite(), -torch.exp(wide), wide)


def _rows_in_one(tensor: LogicalTensor, columns: int) -> int:
    """How many rows of the source, one after another, are one that is arranged."""
    rows, width = tensor.matrix_shape
    each, rest = divmod(columns, width)
    if rest or rows % each:
        raise ValueError(f"{tensor.name}: rows of {width} cannot become rows of {columns}")
    return each
