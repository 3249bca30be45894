"""Floats as they lie in bytes: which words of which blocks could be no number.

In each of these formats a value is NaN or infinite exactly when its word without the sign is above the
largest finite one, so nothing has to be decoded to see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.artifacts.rows import StoredPart
from qexport.artifacts.weights import StoredWeight
from qexport.checkpoint.tensors import DTYPE_BYTES, matrix_shape
from qexport.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.forms import Form
    from qexport.checkpoint.tensors import Checkpoint


@dataclass(frozen=True)
class FloatWord:
    """A float as bits: its little-endian type, the mask that takes its sign off, the largest finite value."""

    kind: str
    mask: int
    largest: int

    @property
    def size(self) -> int:
        return int(self.kind[-1])


F16 = FloatWord("<u2", 0x7FFF, 0x7BFF)
E4M3 = FloatWord("<u1", 0x7F, 0x7E)
E8M0 = FloatWord("<u1", 0xFF, 0xFE)


@dataclass(frozen=True)
class WordBlocks:
    """WordBlocks of ``size`` bytes with ``word`` at each of ``places``."""

    size: int
    word: FloatWord
    places: tuple[int, ...] = (0,)

    def words(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The words of uint8 ``(blocks, size)``, place by place."""
        import numpy as np

        for place in self.places:
            yield np.ascontiguousarray(rows[:, place : place + self.word.size]).view(self.word.kind)[:, 0]


def floats(word: FloatWord) -> WordBlocks:
    """Nothing but such words."""
    return WordBlocks(word.size, word)


FLOATS: Mapping[str, WordBlocks] = {
    "F64": floats(FloatWord("<u8", 0x7FFFFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFF)),
    "F32": floats(FloatWord("<u4", 0x7FFFFFFF, 0x7F7FFFFF)),
    "F16": floats(F16),
    "BF16": floats(FloatWord("<u2", 0x7FFF, 0x7F7F)),
}
_SAFETENSORS: Mapping[str, WordBlocks] = {
    **FLOATS,
    "F8_E5M2": floats(FloatWord("<u1", 0x7F, 0x7B)),
    "F8_E4M3": floats(E4M3),
    "F8_E8M0": floats(E8M0),
}
_WHOLE_NUMBERS = frozenset({"BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"})


@dataclass(frozen=True)
class Numbers:
    """One stored tensor whose numbers can be looked at.

    Attributes:
        type_name: as it is stored.
        blocks: how its floats lie in its bytes; ``None``: there are none, or nobody knows.
        pieces: its bytes, whole blocks of about so many at a time. Raises InputError: they cannot be read.
        divisor: a weight is divided by it.
    """

    name: str
    type_name: str
    rows: int
    blocks: WordBlocks | None
    pieces: Callable[[int], Iterator[np.ndarray]]
    divisor: bool = False

    @property
    def unknown(self) -> bool:
        """Whether there may be floats that cannot be looked at."""
        return self.blocks is None and self.type_name not in _WHOLE_NUMBERS


def folder_numbers(artifact: Opened, stored: Checkpoint) -> Iterator[Numbers]:
    """The numbers of a folder, its MTP head included wherever that lies.

    Args:
        artifact: the folder as it was opened.
        stored: the same folder, as tensors.
    """
    seen: set[str] = set()
    for weight in artifact.weights.values():
        assert isinstance(weight, StoredWeight)
        try:
            form = weight.form
        except InputError:  # said once, where codes and scales are held against each other
            form = None
        for word, part in weight.parts.items():
            if part.checkpoint.label == stored.label:
                seen.add(part.name)
            yield _numbers(part, _blocks(part, word, form), divisor=word == "weight_global_scale")
    # Ranges of the KV cache, buffers: no part of a weight, and read all the same.
    for name, tensor in stored.tensors.items():
        if name not in seen:
            part = StoredPart(stored, tensor)
            yield _numbers(part, _SAFETENSORS.get(part.dtype))


def _numbers(part: StoredPart, blocks: WordBlocks | None, *, divisor: bool = False) -> Numbers:
    rows, columns = matrix_shape(part.shape)

    def pieces(size: int) -> Iterator[np.ndarray]:
        import torch

        step = max(1, size // max(1, columns * DTYPE_BYTES[part.dtype]))
        for start in range(0, rows, step):
            found = part.rows(start, min(rows, start + step))
            yield found.contiguous().view(-1).view(torch.uint8).numpy()

    return Numbers(part.name, part.dtype, rows, blocks, pieces, divisor)


def _blocks(part: StoredPart, word: str, form: Form | None) -> WordBlocks | None:
    """How the part's numbers lie in its bytes; ``None`` where they are whole numbers, or not known."""
    if form is not None and part.dtype in ("U8", "U32"):
        if word == "scales":
            return floats(E4M3 if form.kind == "nvfp4" else E8M0)
        if form.kind == "mxfp8" and word == "weight":
            return floats(E4M3)
    return _SAFETENSORS.get(part.dtype)
