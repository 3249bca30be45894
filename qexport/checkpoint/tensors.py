"""Tensors on disk and tensors as the rest of qexport sees them.

A :class:`StoredTensor` is what a safetensors header says: name, dtype, shape, byte range in one file.
A :class:`LogicalTensor` is a tensor put together from whole rows of stored ones. That is enough for every
layout difference between checkpoints of one model: experts stored one by one or fused, gate and up stored
apart or stacked, a head that comes from another checkpoint. Nothing is read to make one.

Rows: a tensor of shape ``(..., n)`` is seen as ``prod(...)`` rows of ``n`` values; a vector is one row, a
scalar one row of one value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qexport.errors import InputError

if TYPE_CHECKING:
    import torch

# Names and sizes as in the safetensors format:
# https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs (enum Dtype)
_DTYPES = {
    1: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0",
    2: "I16 U16 F16 BF16",
    4: "I32 U32 F32",
    8: "F64 I64 U64",
}
DTYPE_BYTES: Mapping[str, int] = {name: size for size, names in _DTYPES.items() for name in names.split()}
FLOAT_DTYPES = ("BF16", "F16", "F32")


def torch_dtype(name: str) -> torch.dtype:
    """What torch calls a float dtype, or one that packed weights and their scales are stored in."""
    import torch

    return {
        "BF16": torch.bfloat16,
        "F16": torch.float16,
        "F32": torch.float32,
        "F64": torch.float64,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E8M0": torch.float8_e8m0fnu,
        "U8": torch.uint8,
        "I8": torch.int8,
        "I32": torch.int32,
        "I64": torch.int64,
        "U32": torch.uint32,
    }[name]


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of ``shape``: ``(2, 3, 4) -> (6, 4)``, ``(5,) -> (1, 5)``, ``() -> (1, 1)``."""
    if not shape:
        return 1, 1
    return math.prod(shape[:-1]), shape[-1]


class Sized:
    """What has a shape and a safetensors dtype, and so a number of values and of bytes."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class StoredTensor(Sized):
    """One tensor of a safetensors file; ``start`` and ``stop`` are byte offsets from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int


class Checkpoint(Protocol):
    """A checkpoint, on disk or on the Hub: named tensors and small files.

    ``tensors`` is known from headers alone. ``read_rows`` needs the data to be local; a checkpoint of which
    only headers are known raises :class:`~qexport.errors.InputError` there.
    """

    @property
    def label(self) -> str:
        """What to call it in messages and receipts: a folder's name or a repo id, never a host path."""
        ...

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every stored tensor by name, ordered by file and offset."""
        ...

    @property
    def files(self) -> Mapping[str, int]:
        """Every other file (config, tokenizer, templates) by relative name, with its size in bytes."""
        ...

    def read_file(self, name: str) -> bytes:
        """The bytes of one of ``files``. Raises InputError when it is not there or cannot be read."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` of ``name`` as ``(stop - start, columns)``."""
        ...

    def identity(self) -> list[object]:
        """Plain values that change when the weights do; cheap, so it does not look at the weights on disk."""
        ...

    def changed(self) -> list[str]:
        """The files that are not any more what they were when this was opened, by relative name."""
        ...

    @property
    def folder(self) -> Path | None:
        """Where it lies, so that nothing is written there; ``None`` where that is no folder of the user's."""
        ...


def check_known(checkpoint: Checkpoint, file: str) -> None:
    """Raise InputError where the checkpoint has no such small file."""
    if file not in checkpoint.files:
        hint = f"It has: {', '.join(checkpoint.files)}."
        raise InputError(f"{checkpoint.label} has no file {file}.", hint=hint)


@dataclass(frozen=True)
class Piece:
    """Rows ``[start, stop)`` of one stored tensor."""

    checkpoint: Checkpoint
    name: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class LogicalTensor(Sized):
    """A tensor made of rows of stored tensors, in order.

    ``dtype`` is what the values are to be taken as: where it differs from the stored dtype, the values are
    rounded to it when read (a repair, such as a stray float32 matrix in a bf16 checkpoint).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return matrix_shape(self.shape)

    @classmethod
    def whole(cls, checkpoint: Checkpoint, stored: StoredTensor, *, name: str | None = None) -> LogicalTensor:
        """The stored tensor itself, under its own name or another."""
        rows, _ = matrix_shape(stored.shape)
        piece = Piece(checkpoint, stored.name, 0, rows)
        return cls(name or stored.name, stored.shape, stored.dtype, (piece,))

    def rows(self, start: int, stop: int) -> Iterable[Piece]:
        """The pieces that hold rows ``[start, stop)``, in order."""
        at = 0
        for piece in self.pieces:
            low, high = max(start, at), min(stop, at + piece.rows)
            if low < high:
                yield Piece(piece.checkpoint, piece.name, piece.start + low - at, piece.start + high - at)
            at += piece.rows
            if at >= stop:
                return

    def slice_rows(self, name: str, start: int, stop: int, shape: tuple[int, ...]) -> LogicalTensor:
        """Rows ``[start, stop)`` as a tensor of its own."""
        return LogicalTensor(name, shape, self.dtype, tuple(self.rows(start, stop)))


def checkpoints_of(tensors: Iterable[LogicalTensor]) -> tuple[Checkpoint, ...]:
    """What tensors are read from, each once, in the order in which they come."""
    pieces = (piece for tensor in tensors for piece in tensor.pieces)
    return tuple({id(piece.checkpoint): piece.checkpoint for piece in pieces}.values())


def stack_rows(name: str, shape: tuple[int, ...], parts: Iterable[LogicalTensor]) -> LogicalTensor:
    """One tensor from the rows of several, in order; their dtypes must agree.

    Raises:
        ValueError: the parts' dtypes differ, or their rows do not fill ``shape``.
    """
    members = list(parts)
    dtypes = {part.dtype for part in members}
    if len(dtypes) != 1:
        raise ValueError(f"{name}: parts have different dtypes: {sorted(dtypes)}")
    if sum(part.numel for part in members) != math.prod(shape):
        raise ValueError(f"{name}: parts do not fill {shape}")
    pieces = tuple(piece for part in members for piece in part.pieces)
    return LogicalTensor(name, shape, dtypes.pop(), pieces)
