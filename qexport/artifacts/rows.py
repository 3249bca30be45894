"""What a stored matrix is once it is decoded: a shape, and float rows when they are asked for.

A :class:`Decoded` reads packed rows from where they lie and gives float32 (or the stored float dtype, where
there is nothing to decode). :class:`DecodedCheckpoint` puts many of them behind the interface of a
checkpoint, so that whatever runs or compares the source can run or compare an artifact. Only rows that are
asked for are ever decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qexport.checkpoint.tensors import DTYPE_BYTES, LogicalTensor, StoredTensor, matrix_shape
from qexport.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from qexport.checkpoint.tensors import Checkpoint


class StoredPart:
    """One stored tensor: codes, or scales of them."""

    def __init__(self, checkpoint: Checkpoint, tensor: StoredTensor) -> None:
        self.checkpoint = checkpoint
        self.tensor = tensor

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)``, ``(stop - start, columns)`` in the stored dtype."""
        return self.checkpoint.read_rows(self.name, start, stop)

    def whole(self) -> torch.Tensor:
        """All of it, ``(rows, columns)``; for scales and other small tensors."""
        return self.rows(0, matrix_shape(self.shape)[0])


class Decoded(Protocol):
    """A matrix (or stack of them, or vector) as numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers, not of what is stored."""
        ...

    @property
    def dtype(self) -> str:
        """Of what :meth:`read` gives: ``F32``, or ``BF16`` or ``F16`` where that is how it is stored."""
        ...

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` as ``(stop - start, columns)``."""
        ...


class DecodedCheckpoint:
    """Decoded tensors by canonical name, as a checkpoint.

    Args:
        label: what to call it in messages.
        decoded: the tensors.
    """

    def __init__(self, label: str, decoded: Mapping[str, Decoded]) -> None:
        self.label = label
        self.files: Mapping[str, int] = {}
        self._decoded = decoded
        stored: dict[str, StoredTensor] = {}
        at = 0
        for name, tensor in decoded.items():
            rows, columns = matrix_shape(tensor.shape)
            size = rows * columns * DTYPE_BYTES[tensor.dtype]
            stored[name] = StoredTensor(name, tensor.dtype, tensor.shape, label, at, at + size)
            at += size
        self.tensors: Mapping[str, StoredTensor] = stored

    def logical(self) -> dict[str, LogicalTensor]:
        """Every tensor as the rest of qexport takes it."""
        return {name: LogicalTensor.whole(self, tensor) for name, tensor in self.tensors.items()}

    def read_file(self, name: str) -> bytes:
        """There are no files here: always raises InputError."""
        raise InputError(f"{self.label} has no file {name}")

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` of ``name``, decoded."""
        return self._decoded[name].read(start, stop)

    def identity(self) -> list[object]:
        """What is decoded is exported nowhere, so nothing depends on it."""
        return [self.label]

    def changed(self) -> list[str]:
        """As for :meth:`identity`: nobody goes by it."""
        return []

    folder = None
