"""A checkpoint of a few computed tensors, such as the RoPE factors that a format adds to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import LogicalTensor, StoredTensor
from qexport.errors import InputError

if TYPE_CHECKING:
    import torch

_DTYPE_NAMES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}


class MemoryCheckpoint:
    """Tensors held in memory, behind a checkpoint's interface: float32, float16 or bfloat16."""

    folder = None

    def __init__(self, label: str, tensors: Mapping[str, torch.Tensor]) -> None:
        self.label = label
        self.files: Mapping[str, int] = {}
        self._data = dict(tensors)
        stored: dict[str, StoredTensor] = {}
        at = 0
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.element_size()
            dtype = _DTYPE_NAMES[str(tensor.dtype)]
            stored[name] = StoredTensor(name, dtype, tuple(tensor.shape), label, at, at + size)
            at += size
        self.tensors: Mapping[str, StoredTensor] = stored

    def logical(self, name: str) -> LogicalTensor:
        """The tensor as the rest of qexport takes it."""
        return LogicalTensor.whole(self, self.tensors[name])

    def read_file(self, name: str) -> bytes:
        """There are no files here: always raises InputError."""
        raise InputError(f"{self.label} has no file {name}")

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` as a ``(stop - start, columns)`` view."""
        tensor = self._data[name]
        columns = tensor.shape[-1] if tensor.dim() else 1
        return tensor.reshape(-1, columns)[start:stop]

    def identity(self) -> list[object]:
        """A hash of the values."""
        import hashlib

        import torch

        digest = hashlib.sha256()
        for name, tensor in self._data.items():
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return [digest.hexdigest()]

    def changed(self) -> list[str]:
        """Memory does not change."""
        return []
