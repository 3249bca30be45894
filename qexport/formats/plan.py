"""The plan: what an artifact will contain, byte by byte, before any tensor is read.

A format turns a model view and its options into an :class:`ArtifactPlan`. A plan is a printable value: file
names, exact sizes, and for each output tensor its name, shape, stored type, place, source and encoder. The
executor (``qexport.export``) walks the plan and knows nothing about formats.

Every output tensor is described by rows: the rows of a logical tensor, rearranged (:class:`Arrangement`),
encoded a run of rows at a time. That covers GGUF permutations, stacked experts, bit packing and block
scales, and it lets a 54 GB model pass through a few megabytes of memory. An encoder may give several
streams of bytes for the same rows (codes, scales, biases); each stream fills regions of its own, several of
them where a stack of experts is stored one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from qexport.checkpoint.tensors import LogicalTensor, matrix_shape

if TYPE_CHECKING:
    import numpy as np
    import torch


Encoded: TypeAlias = "bytes | np.ndarray"
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
            and self.same_rows(other)
            and _same_order(self.column_order, other.column_order)
        )

    def same_rows(self, other: Arrangement) -> bool:
        """Whether both take the source's rows in the same order."""
        return _same_order(self.row_order, other.row_order)


def _same_order(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or (len(one) == len(other) and bool((one == other).all()))


class Survey(Protocol):
    """What has to be known of all rows of some tensors before any of them is encoded: their largest value.

    Tensors that a runtime fuses share one (an NVFP4 global scale). The pass shows it every row of every
    planned tensor whose encoder has it, from several threads at once, and only then encodes.
    """

    def observe(self, rows: torch.Tensor, first_row: int) -> None:
        """Look at ``rows``, as :meth:`Encoder.encode` will get them. Values that are not finite are ignored:
        the pass itself reports them."""
        ...


class Encoder(Protocol):
    """Rows of numbers in, packed bytes out. Pure: the same rows give the same bytes on any thread."""

    @property
    def type_name(self) -> str:
        """The stored type as the format spells it: ``Q4_K``, ``BF16``."""
        ...

    @property
    def rows_together(self) -> int:
        """Runs of rows begin at multiples of this: 1, or the height of a tile."""
        ...

    @property
    def survey(self) -> Survey | None:
        """What the encoder needs to know beforehand, if anything."""
        ...

    def encode(self, rows: torch.Tensor, first_row: int) -> Encoded | tuple[Encoded, ...]:
        """Encode ``rows``, ``(n, columns)`` in the source's dtype; ``first_row`` is the index of its first
        row in the output tensor (an importance matrix may differ per expert). Returns the bytes for each
        stream of the planned tensor, in order; runs come in order, so what a stream gives is appended."""
        ...


@dataclass(frozen=True)
class Region:
    """``nbytes`` bytes at ``offset`` of file ``file`` (an index into the artifact's files)."""

    file: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor: identity, source, arrangement, encoder, and where its bytes go.

    Attributes:
        streams: for each stream of bytes that the encoder gives, the regions that it fills one after
            another. One region in most cases; one for each expert where a stack is stored one by one.
    """

    name: str
    shape: tuple[int, ...]
    source: LogicalTensor
    arrangement: Arrangement
    encoder: Encoder
    streams: tuple[tuple[Region, ...], ...]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return matrix_shape(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all regions."""
        return sum(region.nbytes for stream in self.streams for region in stream)


@dataclass(frozen=True)
class PlannedFile:
    """One file: its name inside the output folder, exact size, and the bytes it begins with."""

    name: str
    size: int
    header: bytes = field(repr=False)


@dataclass(frozen=True)
class ArtifactPlan:
    """One artifact (a GGUF file or its shards, a folder of safetensors), complete before a byte is written.

    ``tensors`` come in the order of the pass (``qexport.formats.order``), and files are best laid out in it:
    then they are written front to back and hashed on the way. ``notes`` are the things a user should know:
    fallback types, tensors without importance data, what was left out. ``details`` are facts for the receipt.
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
        return 8 * sum(t.nbytes for t in self.tensors) / values if values else 0.0
