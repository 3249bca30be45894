"""The header of a GGUF file, from untrusted bytes to checked tensors; the tensors' data is not read.

Not gguf's GGUFReader: that one makes a numpy view of every token of the vocabulary (seconds, and hundreds of
MiB for 250 000 of them) and fails on a broken file with whatever error comes first. This one walks the header
once, keeps scalars and strings, skips arrays but for the lists of texts that are asked for, and says
DamagedGguf for anything that does not add up, a file shorter than its tensors included.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from qexport.container.gguf_write import ALIGNMENT, MAGIC, PACKING, ValueType, padded

Scalar = int | float | bool | str

_VERSIONS = (2, 3)
# Far above anything real; what a random file says instead of a count is usually astronomic.
_MAX_COUNT = 1 << 24
_MAX_STRING = 1 << 26
_MAX_DIMS = 4
# The least that they take: an empty name, a type and a byte; a name, no dimensions, a type and an offset.
_KEY_BYTES, _TENSOR_BYTES, _TEXT_BYTES = 13, 24, 8


class DamagedGguf(ValueError):
    """What does not add up in a header, without the file's name; the caller knows what the file is for."""


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor is: the shard's number, bytes from its beginning; ``shape`` in torch's order."""

    type_name: str
    shape: tuple[int, ...]
    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class GgufHeader:
    """One file's header: scalars and texts by key, the lists that were asked for, where each tensor is."""

    metadata: Mapping[str, Scalar] = field(repr=False)
    texts: Mapping[str, tuple[str, ...]] = field(repr=False)
    tensors: Mapping[str, GgufTensor] = field(repr=False)


def read_gguf_header(file: BinaryIO, size: int, *, shard: int = 0, lists: Container[str] = ()) -> GgufHeader:
    """Read from the beginning of ``file``.

    Args:
        size: bytes of the whole file.
        shard: the file's number, which its tensors then have.
        lists: keys of arrays of texts that are kept.

    Raises:
        DamagedGguf: it is no GGUF file, or damaged, or shorter than its tensors.
    """
    return _Walk(file, size).header(shard, lists)


def count_in(metadata: Mapping[str, Scalar], key: str, default: int) -> int:
    """A count from the metadata. Raises DamagedGguf for what is none."""
    value = metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DamagedGguf(f"{key} is {str(value)[:40]!r}, not a count")
    return value


class _Walk:
    """A way through a header, front to back, that cannot leave it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def header(self, shard: int, lists: Container[str]) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise DamagedGguf("not a GGUF file (its first four bytes are not 'GGUF')")
        version = self._number("I")
        if version not in _VERSIONS:
            raise DamagedGguf(f"GGUF version {version}; known are {_VERSIONS}")
        n_tensors, n_keys = int(self._number("Q")), int(self._number("Q"))
        self._plausible(n_tensors, _TENSOR_BYTES, "tensors")
        self._plausible(n_keys, _KEY_BYTES, "metadata keys")
        metadata: dict[str, Scalar] = {}
        texts: dict[str, tuple[str, ...]] = {}
        for _ in range(n_keys):
            key = self._name()
            value = self._value(keep=key in lists)
            if isinstance(value, tuple):
                texts[key] = value
            elif value is not None:
                metadata[key] = value
        found = [self._tensor() for _ in range(n_tensors)]
        start = padded(self._file.tell(), count_in(metadata, "general.alignment", 0) or ALIGNMENT)
        end = start + max((tensor.stop for _, tensor in found), default=0)
        if n_tensors and end > self._size:
            raise DamagedGguf(
                f"the file is {end - self._size} bytes shorter than its tensors: truncated or still copying"
            )
        tensors = {
            name: replace(tensor, shard=shard, start=start + tensor.start, stop=start + tensor.stop)
            for name, tensor in found
        }
        return GgufHeader(metadata, texts, tensors)

    def _tensor(self) -> tuple[str, GgufTensor]:
        """One tensor with its name; offsets count from the end of the header."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._name()
        n_dims = int(self._number("I"))
        if n_dims > _MAX_DIMS:
            raise DamagedGguf(f"tensor {name!r} has {n_dims} dimensions")
        shape = tuple(int(self._number("Q")) for _ in range(n_dims))[::-1]
        number, offset = int(self._number("I")), int(self._number("Q"))
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise DamagedGguf(f"tensor {name!r} has an unknown type {number}") from None
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        stop = offset + math.prod(shape) // per_block * block_bytes
        return name, GgufTensor(kind.name, shape, 0, offset, stop)

    def _value(self, *, keep: bool) -> Scalar | tuple[str, ...] | None:
        """A scalar or a text; of arrays only texts, and only if they are to be kept."""
        kind = int(self._number("I"))
        if kind == ValueType.STRING:
            return self._text()
        if kind in PACKING:
            return self._number(PACKING[ValueType(kind)])
        if kind != ValueType.ARRAY:
            raise DamagedGguf(f"metadata of unknown kind {kind}")
        inner, count = int(self._number("I")), int(self._number("Q"))
        if inner in PACKING:
            width = struct.calcsize(PACKING[ValueType(inner)])
            self._plausible(count, width, "array elements")
            self._take(count * width)
            return None
        if inner != ValueType.STRING:
            raise DamagedGguf(f"an array of unknown kind {inner}")
        self._plausible(count, _TEXT_BYTES, "array elements")
        if keep:
            return tuple(self._text() for _ in range(count))
        for _ in range(count):
            # Reading is faster than seeking for the short strings of a vocabulary, and notices the end.
            self._take(self._length())
        return None

    def _length(self) -> int:
        length = int(self._number("Q"))
        if length > _MAX_STRING:
            raise DamagedGguf(f"a string of {length} bytes")
        return length

    def _text(self) -> str:
        return self._take(self._length()).decode("utf-8", errors="replace")

    def _name(self) -> str:
        try:
            return self._take(self._length()).decode()
        except UnicodeDecodeError:
            raise DamagedGguf("a name is not text") from None

    def _number(self, code: str) -> int | float | bool:
        value: int | float | bool = struct.unpack("<" + code, self._take(struct.calcsize(code)))[0]
        return value

    def _plausible(self, count: int, smallest: int, what: str) -> None:
        left = self._size - self._file.tell()
        if count > min(_MAX_COUNT, left // smallest):
            raise DamagedGguf(f"it claims {count} {what} with {left} bytes left")

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise DamagedGguf("it ends inside its header")
        return data
