"""What the encoders have in common: their protocol, the size of a chunk, the empty output, the refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qexport.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch


CHUNK_VALUES = 1 << 18  # one megabyte of float32: stays in the cache between widening and encoding


class RowEncoder(Protocol):
    """What ``encoders.make_encoder`` returns; the same shape as the protocol in ``qexport.formats.plan``."""

    @property
    def type_name(self) -> str: ...

    def row_bytes(self, columns: int) -> int: ...

    @property
    def rows_together(self) -> int: ...

    @property
    def survey(self) -> None: ...

    def encode(self, rows: torch.Tensor, first_row: int) -> np.ndarray: ...


class RowByRow:
    """An encoder whose rows do not depend on each other: any run of them may be encoded alone."""

    @property
    def rows_together(self) -> int:
        return 1

    @property
    def survey(self) -> None:
        return None


def chunk_rows(rows: torch.Tensor, multiple: int = 1) -> int:
    """How many rows to widen at a time, a multiple of ``multiple``."""
    whole = CHUNK_VALUES // max(1, rows.shape[1])
    return max(multiple, whole - whole % multiple)


def empty_output(encoder: RowEncoder, rows: torch.Tensor) -> np.ndarray:
    """Room for the packed ``rows``."""
    import numpy as np

    return np.empty((len(rows), encoder.row_bytes(rows.shape[1])), np.uint8)


def unrepresentable(
    type_name: str,
    first_row: int,
    count: int,
    values: str = "NaN, infinity, or too large for a float16 scale",
) -> InputError:
    """The error for rows that a type cannot store, and which ``values`` that may be."""
    return InputError(
        f"rows {first_row} to {first_row + count - 1} hold values that {type_name} cannot store: {values}",
        hint="check the checkpoint for damaged weights, or store this tensor as BF16",
    )
