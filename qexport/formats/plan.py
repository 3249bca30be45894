"""The plan: what an artifact will contain, byte by byte, before any tensor is read.

A format turns a model view and its options into an :class:`ArtifactPlan`. A plan is a printable value: file
names, exact sizes, and for each output tensor its name, shape, stored type, place, source and encoder. The
executor (``qexport.export``) walks the plan and knows nothing about formats.

Every output tensor is described by rows: the rows of a logical tensor, rearranged (:class:`Arrangement`),
encoded a run of rows at a time. That covers GGUF permutations, stacked experts, bit packing and block
scales, and it lets a 54 GB model pass through a few megabytes of memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qexport.checkpoint.tensors import LogicalTensor, matrix_shape

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["Arrangement", "ArtifactPlan", "Encoder", "Op", "PlannedFile", "PlannedTensor", "Region"]

Op = Literal["none", "add_one", "neg_exp"]


@dataclass(frozen=True)
class Arrangement:
    """How stored rows become output rows.

    Attributes:
        shape: shape of the output tensor, in torch order (rows first); ``None`` keeps the source's.
        row_order: for each output row, the source row; ``None`` is the identity. May select fewer rows.
        column_order: for each output column, the source column; ``None`` is the identity.
        op: element-wise operation, done in float32 (in float16 for a float16 source, as llama.cpp's converter
            does): ``add_one`` turns a zero-centred norm weight into a plain one, ``neg_exp`` is -exp(x).
    """

    shape: tuple[int, ...] | None = None
    row_order: np.ndarray | None = field(default=None, repr=False)
    column_order: np.ndarray | None = field(default=None, repr=False)
    op: Op = "none"

    def same_as(self, other: Arrangement) -> bool:
        """Whether both make the same rows, so that rows arranged for one serve the other."""
        if self is other:
            return True
        return (
            self.shape == other.shape
            and self.op == other.op
            and _same_order(self.row_order, other.row_order)
            and _same_order(self.column_order, other.column_order)
        )


def _same_order(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or (len(one) == len(other) and bool((one == other).all()))


class Encoder(Protocol):
    """Rows of numbers in, packed bytes out. Pure: the same rows give the same bytes on any thread."""

    @property
    def type_name(self) -> str:
        """The stored type as the format spells it: ``Q4_K``, ``BF16``."""
        ...

    def row_bytes(self, columns: int) -> int:
        """Bytes of one encoded row of ``columns`` values."""
        ...

    def encode(self, rows: torch.Tensor, first_row: int) -> bytes | np.ndarray:
        """Encode ``rows``, ``(n, columns)`` in the source's dtype; ``first_row`` is the index of its first
        row in the output tensor (an importance matrix may differ per expert). Returns n * row_bytes bytes."""
        ...


@dataclass(frozen=True)
class Region:
    """``nbytes`` bytes at ``offset`` of file ``file`` (an index into the artifact's files)."""

    file: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor: identity, source, arrangement, encoder, and where its bytes go."""

    name: str
    shape: tuple[int, ...]
    source: LogicalTensor
    arrangement: Arrangement
    encoder: Encoder
    region: Region

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return matrix_shape(self.shape)


@dataclass(frozen=True)
class PlannedFile:
    """One file: its name inside the output folder, exact size, and the bytes it begins with."""

    name: str
    size: int
    header: bytes = field(repr=False)


@dataclass(frozen=True)
class ArtifactPlan:
    """One artifact (a GGUF file or its shards, a folder of safetensors), complete before a byte is written.

    ``tensors`` are in file order: regions of one file ascend, so that files are written front to back and
    hashed on the way. ``notes`` are the things a user should know: fallback types, tensors without
    importance data, what was left out. ``details`` are facts for the receipt.
    """

    kind: str
    label: str
    files: tuple[PlannedFile, ...]
    tensors: tuple[PlannedTensor, ...]
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the encoded tensors (no header) per value."""
        values = sum(rows * columns for rows, columns in (t.matrix_shape for t in self.tensors))
        return 8 * sum(t.region.nbytes for t in self.tensors) / values if values else 0.0
