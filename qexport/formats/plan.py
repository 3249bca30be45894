"""The plan: what an artifact will contain, byte by byte, before any tensor is read.

A format turns a model view and its options into an :class:`ArtifactPlan`. A plan is a printable value: file
names, exact sizes, and for each output tensor its name, shape, source, stored type, place, and what has to be
known of its numbers. The executor (``qexport.onepass``) walks the plan and knows nothing about formats.

Every output tensor is described by rows: the rows of a logical tensor, rearranged (:class:`Arrangement`),
encoded a run of rows at a time. That covers GGUF permutations, stacked experts, bit packing and block
scales, and it lets a 54 GB model pass through a few megabytes of memory. A stored type may have several
streams of bytes for the same rows (codes, scales, biases); each stream fills regions of its own, several of
them where a stack of experts is stored one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from qexport.checkpoint.tensors import LogicalTensor, matrix_shape
from qexport.evidence.store import NOTHING, Evidence, Kind, Need

if TYPE_CHECKING:
    import numpy as np

    from qexport.assign.assignment import Assignment
    from qexport.codecs.contract import StoredType


Op = Literal["none", "add_one", "neg_exp"]


@dataclass(frozen=True, eq=False)
class Arrangement:
    """How stored rows become output rows. Two are equal where rows arranged for one serve the other.

    Attributes:
        shape: shape of the output tensor, in torch order (rows first); ``None`` keeps the source's. Its rows
            may be several of the source's, one after another; orders are of such rows and their columns.
        row_order: for each output row, the source row; ``None`` is the identity. May select fewer rows.
        column_order: for each output column, the source column; ``None`` is the identity.
        op: element-wise operation, done in float32 (in float16 for a float16 source, as llama.cpp's converter
            does): ``add_one`` turns a zero-centred norm weight into a plain one, ``neg_exp`` is -exp(x).
    """

    shape: tuple[int, ...] | None = None
    row_order: np.ndarray | None = field(default=None, repr=False)
    column_order: np.ndarray | None = field(default=None, repr=False)
    op: Op = "none"

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Arrangement)
            and self.shape == other.shape
            and self.op == other.op
            and self.same_rows(other)
            and _same_order(self.column_order, other.column_order)
        )

    def __hash__(self) -> int:
        return hash((self.shape, self.op))

    def same_rows(self, other: Arrangement) -> bool:
        """Whether both take the source's rows in the same order."""
        return _same_order(self.row_order, other.row_order)


def _same_order(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or (len(one) == len(other) and bool((one == other).all()))


@dataclass(frozen=True)
class Region:
    """``nbytes`` bytes at ``offset`` of file ``file`` (an index into the artifact's files)."""

    file: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor: identity, source, arrangement, stored type, and where its bytes go.

    Attributes:
        shape: as stored; with three dimensions the first counts matrices below each other.
        streams: for each stream of bytes of the stored type, the regions that it fills one after another. One
            region in most cases; one for each expert where a stack is stored one by one.
        needs: what has to be known of its numbers before they are encoded.
    """

    name: str
    shape: tuple[int, ...]
    source: LogicalTensor
    arrangement: Arrangement
    stored: StoredType
    streams: tuple[tuple[Region, ...], ...]
    needs: tuple[Need, ...] = ()

    @property
    def canonical(self) -> str:
        """Its name in the model's view; some tensors of a file are of no view (a table of RoPE factors)."""
        return self.source.name

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return matrix_shape(self.shape)

    def need(self, kind: Kind) -> Need | None:
        """Its need of this kind."""
        return next((need for need in self.needs if need.kind is kind), None)

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
    ``assignment`` is the choice of types that the plan was made of.
    ``evidence`` is a handle like those of the sources: what the needs of its tensors are met from, as far as
    the pass does not find it out itself.
    """

    kind: str
    label: str
    files: tuple[PlannedFile, ...]
    tensors: tuple[PlannedTensor, ...]
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    assignment: Assignment | None = None
    evidence: Evidence = field(default=NOTHING, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def data_size(self) -> int:
        """Bytes of the encoded tensors; what files have beyond them is headers and small files."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the encoded tensors (no header) per value."""
        values = sum(rows * columns for rows, columns in (t.matrix_shape for t in self.tensors))
        return 8 * self.data_size / values if values else 0.0
