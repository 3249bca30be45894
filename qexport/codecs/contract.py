"""The contract of every codec: what the bytes of a stored type are, and what it takes to make them.

A **stored type** says what lies in a file: which codes, which groups, whose roundings. It is a frozen value
of plain fields, so a plan that holds it can be printed, compared and kept. It knows no numbers, no machine.

An **engine** (:mod:`qexport.codecs.engines`) makes the bytes; for each type that it knows it has a function::

    encode(stored, rows, known) -> Packed

* ``rows``: ``(n, columns)`` of one matrix, bfloat16, float16 or float32, as they lie in the checkpoint. They
  are left as they are. Whatever the dtype, the numbers are those of float32, unless the type says otherwise.
* ``known``: what else is known of that matrix (:class:`Known`). Which kinds a type makes use of is written
  beside its fields; a plan says of each tensor which of them it needs, and the pass provides them.
* ``Packed.streams``: for each stream of the type (codes, scales, biases) its bytes, an array in C order. Runs
  of rows come in order, so what a stream gets is appended. What belongs to a whole matrix (a global scale)
  comes with its first row.
* ``Packed.bad``: how many places hold what the type cannot; 0 if all is well. :func:`encode_rows` in the
  engines makes the error of it, with the type's own words.

It is pure: the same rows give the same bytes on any thread and for every split that begins at multiples of
``rows_together``. It allocates scratch and output, no more.

To add a type: a class here, a function in a module of its own, a row in the engine's table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from qexport.codecs.ggml_types import ggml_type
from qexport.errors import UsageProblem

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qexport.codecs.feedback import Feedback


FP8_TILE = 128
CHUNK_VALUES = 1 << 18  # one megabyte of float32: stays in the cache between widening and encoding


class StoredType:
    """What all types have.

    Attributes:
        rows_together: runs of rows begin at multiples of this: 1, or the height of a tile.
        unstorable: what its error says of values that it cannot hold.
    """

    name: str
    rows_together: ClassVar[int] = 1
    unstorable: ClassVar[str] = "NaN or infinity"


@dataclass(frozen=True)
class Float(StoredType):
    """``F32``, ``F16`` or ``BF16``; rounded to ``through`` first, where two casts came one after another."""

    name: str
    through: str | None = None


@dataclass(frozen=True)
class Blocks(StoredType):
    """A block type of ggml, ``Q4_K``: one stream, rows of packed blocks. Importance weighs its errors."""

    unstorable = "NaN, infinity, or too large for a float16 scale"
    name: str

    @property
    def uses_importance(self) -> bool:
        """Whether importance changes its bytes: not those of Q8_0 and MXFP4."""
        return self.name not in ("Q8_0", "MXFP4")


@dataclass(frozen=True)
class Moved(StoredType):
    """Bytes that are packed already, in blocks of the ggml type of that name: rows of uint8, as they are."""

    name: str


@dataclass(frozen=True)
class MlxAffine(StoredType):
    """MLX's affine groups: packed codes, scales, biases. Importance: scale and bias are fitted to it.

    Attributes:
        bits, group: of the codes, as :mod:`qexport.codecs.mlx_affine` knows them.
        dtype: ``BF16``, ``F16`` or ``F32``: of scales and biases, and of the values before.
    """

    unstorable = "NaN, infinity, or too far apart for float32"
    bits: int
    group: int
    dtype: str = "BF16"

    @property
    def name(self) -> str:  # type: ignore[override]
        """``6-bit g64``."""
        return f"{self.bits}-bit g{self.group}"


@dataclass(frozen=True)
class MlxFloat(StoredType):
    """``mxfp4``, ``mxfp8`` or ``nvfp4`` as MLX has them: packed codes, scales; values cast to ``dtype``."""

    unstorable = "NaN, infinity, or too large for the scales of this mode"
    name: str
    dtype: str = "BF16"


@dataclass(frozen=True)
class Fp8Tiles(StoredType):
    """E4M3 in tiles of 128 by 128: codes, and the scales of the tiles.

    Experts stacked in a tensor need nothing special as long as each has a multiple of 128 rows. ``style`` as
    in :class:`qexport.codecs.fp8_block.Style`.
    """

    rows_together = FP8_TILE
    style: str = "native"
    name: str = "F8_E4M3"

    def scale_dtype(self, source: str) -> str:
        """The stored dtype of scales for a tensor of dtype ``source``, both as safetensors spells them."""
        return "BF16" if self.style == "native" else source

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        return rows // FP8_TILE, columns // FP8_TILE


@dataclass(frozen=True)
class Fp8Rows(StoredType):
    """E4M3 with a scale for a row, as llm-compressor rounds: codes, and the scales in the source's dtype."""

    name: str = "F8_E4M3"

    def scale_dtype(self, source: str) -> str:
        return source

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        return rows, 1


@dataclass(frozen=True)
class Fp8Matrix(StoredType):
    """E4M3 with a scale for a matrix: codes, its float32 scale, that of its inputs.

    Needs the largest magnitude; how large inputs are is measured, or importance says it.
    """

    name: str = "F8_E4M3"


@dataclass(frozen=True)
class Nvfp4(StoredType):
    """E2M1 in blocks of 16: levels, E4M3 scales, float32 global scales. Needs the largest magnitude.

    Attributes:
        divides: round as compressed-tensors does, and store the inverse of the global scale; else ModelOpt.
        scales: ``max`` for those libraries' own block scales, ``mse`` to search for better ones; importance
            weighs the errors of that search.
        inputs: store the global scale of the matrix's inputs, too (W4A4). Needs their largest magnitude.
    """

    divides: bool = False
    scales: Literal["max", "mse"] = "max"
    inputs: bool = False
    name: str = "NVFP4"


@dataclass(frozen=True)
class Nvfp4Blocks(Nvfp4):
    """The same numbers in ggml's blocks of 64 (:mod:`qexport.codecs.nvfp4_blocks`): blocks, global scales."""

    uses_importance: ClassVar[bool] = True


def ggml_stored(type_name: str) -> Float | Blocks | Nvfp4Blocks:
    """The ggml type called ``type_name``, in any case. Raises UsageProblem listing the known names."""
    kind = ggml_type(type_name)
    if kind.name == "NVFP4":
        return Nvfp4Blocks()
    return Blocks(kind.name) if kind.is_quantized else Float(kind.name)


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the matrix that rows belong to.

    Attributes:
        importance: mean squared inputs, float32 ``(columns,)``.
        largest: the largest magnitude of all that share a scale with it, itself among them.
        begins: whether the rows begin with its first.
        feedback: how its columns make up for each other's errors (:mod:`qexport.codecs.feedback`), for types
            that can use it.
        inputs: the largest magnitude of what it is multiplied with; ``None``: it was not measured.
    """

    importance: np.ndarray | None = None
    largest: float = 0.0
    begins: bool = True
    feedback: Feedback | None = None
    inputs: float | None = None


@dataclass(frozen=True, eq=False)
class Matrices:
    """What is known of a tensor: one matrix, or several below each other.

    Attributes:
        height: rows of each of several.
        importance: mean squared inputs, float32 ``(matrices, columns)``; one row may stand for all.
        largest: largest magnitudes, ``(matrices,)``.
        feedback: one for each, made when it is asked for; ``None`` among them: none for that matrix.
        inputs: largest magnitudes of their inputs, ``(matrices,)``; one may stand for all.

    Raises:
        UsageProblem: tables of another form, or several matrices without a height.
    """

    height: int | None = None
    importance: np.ndarray | None = None
    largest: np.ndarray | None = None
    feedback: Sequence[Feedback | None] | None = None
    inputs: np.ndarray | None = None

    def __post_init__(self) -> None:
        table = self.importance
        if table is not None and (table.ndim != 2 or table.dtype.name != "float32"):
            raise UsageProblem(
                f"importance must be float32 (matrices, columns), not {table.dtype} {table.shape}"
            )
        if self.count > 1 and not self.height:
            raise UsageProblem(f"what is known of {self.count} matrices needs their height")
        if any(len(each) not in (1, self.count) for each in self._tables):
            sizes = " and ".join(str(len(each)) for each in self._tables)
            raise UsageProblem(f"tables of {sizes} rows are not of {self.count} matrices")

    @property
    def count(self) -> int:
        return max((len(table) for table in self._tables), default=1)

    @property
    def _tables(self) -> list[Sized]:
        tables = (self.importance, self.largest, self.feedback, self.inputs)
        return [table for table in tables if table is not None]

    def parts(self, first_row: int, rows: int) -> Iterator[tuple[Known, int, int]]:
        """What is known of ``rows`` rows from ``first_row`` of the tensor on, and of which; by matrix.

        Raises:
            UsageProblem: there are rows beyond the last matrix.
        """
        count, height = self.count, self.height
        if count == 1 or height is None:
            yield self._of(0, begins=first_row == 0), 0, rows
            return
        start = 0
        while start < rows:
            matrix, inside = divmod(first_row + start, height)
            if matrix >= count:
                raise UsageProblem(f"row {first_row + start} is beyond the {count} matrices of its tensor")
            stop = min(rows, start + height - inside)
            yield self._of(matrix, begins=inside == 0), start, stop
            start = stop

    def _of(self, matrix: int, *, begins: bool) -> Known:
        table = self.importance
        importance = None if table is None else table[min(matrix, len(table) - 1)]
        largest = 0.0 if self.largest is None else float(self.largest[matrix])
        feedback = None if self.feedback is None else self.feedback[matrix]
        inputs = None if self.inputs is None else float(self.inputs[min(matrix, len(self.inputs) - 1)])
        return Known(importance, largest, begins, feedback, inputs)


@dataclass(frozen=True, eq=False)
class Packed:
    """What an engine made of rows: the bytes of each stream, and how many places could not be stored."""

    streams: tuple[np.ndarray, ...]
    bad: int = 0


def chunk_rows(rows: torch.Tensor, multiple: int = 1) -> int:
    """How many rows to widen at a time, a multiple of ``multiple``."""
    whole = CHUNK_VALUES // max(1, rows.shape[1])
    return max(multiple, whole - whole % multiple)
