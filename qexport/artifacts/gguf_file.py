"""What a GGUF file says of itself: architecture, type, tensors, size, shards; read without its data.

Not gguf's GGUFReader: that one makes a numpy view of every token of the vocabulary (seconds, and hundreds of
MiB for 250 000 of them) and fails on a broken file with whatever error comes first. This one walks the header
once, keeps scalars and strings, skips arrays, and says InputError for anything that does not add up, a file
shorter than its tensors included.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO

from qexport.checkpoint.paths import open_regular
from qexport.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["GgufInfo", "GgufTensor", "read_gguf", "shard_paths"]

Scalar = int | float | bool | str

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
# Far above anything real; what a random file says instead of a count is usually astronomic.
_MAX_COUNT = 1 << 24
_MAX_STRING = 1 << 26
_MAX_DIMS = 4
_DEFAULT_ALIGNMENT = 32
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor is: the shard's number, bytes from its beginning; ``shape`` in torch's order."""

    type_name: str
    shape: tuple[int, ...]
    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class GgufInfo:
    """The header of a GGUF, all shards together.

    Attributes:
        tensors: the type of each.
        entries: where each is.
    """

    name: str
    size: int
    shards: int
    architecture: str
    file_type: str
    tensors: Mapping[str, str]
    parameters: int
    nextn_layers: int
    context_length: int
    chat_template: bool
    metadata: Mapping[str, Scalar] = field(repr=False)
    entries: Mapping[str, GgufTensor] = field(repr=False, default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Bits of stored tensors for each weight; header and padding are not weights."""
        stored = sum(entry.stop - entry.start for entry in self.entries.values())
        return 8 * stored / self.parameters if self.parameters else 0.0

    @property
    def head_tensors(self) -> bool:
        """Whether an MTP head is there; llama.cpp names its tensors ``blk.N.nextn.*`` in every family."""
        return any(".nextn." in name for name in self.tensors)

    @property
    def head_only(self) -> bool:
        """An MTP head in a file of its own (``mtp-*.gguf``): it drafts for another file, it cannot answer.

        llama.cpp tells one by the same missing tensor.
        """
        return self.head_tensors and "blk.0.attn_norm.weight" not in self.tensors


def shard_paths(path: Path) -> list[Path]:
    """Every file of the GGUF that ``path`` is a shard of, in order; ``[path]`` when it is whole."""
    match = _SHARD.match(path.name)
    if match is None or not _counts(match):
        return [path]
    count = int(match["count"])
    return [path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]


def read_gguf(path: Path) -> GgufInfo:
    """Read the header of ``path`` and of its other shards.

    Raises:
        InputError: a file is missing, is not a GGUF, or is shorter than its tensors.
    """
    match = _SHARD.match(path.name)
    if match is not None and not _counts(match):
        raise InputError(f"{path.name}: there is no shard {match['index']} of {match['count']}")
    paths = shard_paths(path)
    metadata: dict[str, Scalar] = {}
    entries: dict[str, GgufTensor] = {}
    parameters = size = 0
    for shard, part in enumerate(paths):
        try:
            with os.fdopen(open_regular(part, part.name), "rb") as file:
                length = os.fstat(file.fileno()).st_size
                size += length
                header = _Header(file, part.name, length, shard)
                header.read()
        except OSError as error:
            raise InputError(f"{part.name}: {error.strerror or error}") from error
        # The first shard has the model's metadata, the others only their own split.* keys.
        metadata = {**header.metadata, **metadata}
        entries.update(header.tensors)
        parameters += header.parameters
    for key in ("split.no", "split.count"):
        _whole(metadata, key, 0, path.name)
    declared = _whole(metadata, "split.tensors.count", len(entries), path.name)
    if declared != len(entries):
        raise InputError(
            f"{path.name}: the shards hold {len(entries)} tensors, their headers promise {declared}"
        )
    tensors = {name: entry.type_name for name, entry in entries.items()}
    architecture = str(metadata.get("general.architecture", ""))
    return GgufInfo(
        name=paths[0].name,
        size=size,
        shards=len(paths),
        architecture=architecture,
        file_type=_file_type(metadata.get("general.file_type"), tensors),
        tensors=tensors,
        parameters=parameters,
        nextn_layers=_whole(metadata, f"{architecture}.nextn_predict_layers", 0, path.name),
        context_length=_whole(metadata, f"{architecture}.context_length", 0, path.name),
        chat_template=bool(metadata.get("tokenizer.chat_template")),
        metadata=metadata,
        entries=entries,
    )


class _Header:
    """One file's header, read front to back."""

    def __init__(self, file: BinaryIO, name: str, size: int, shard: int) -> None:
        self._file = file
        self._name = name
        self._size = size
        self._shard = shard
        self.metadata: dict[str, Scalar] = {}
        self.tensors: dict[str, GgufTensor] = {}
        self.parameters = 0

    def read(self) -> None:
        """Fill the attributes, or raise InputError."""
        if self._take(4) != _MAGIC:
            raise self._broken("not a GGUF file (its first four bytes are not 'GGUF')")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise self._broken(f"GGUF version {version}; known are {_VERSIONS}")
        n_tensors, n_keys = self._count("tensors"), self._count("metadata keys")
        for _ in range(n_keys):
            key = self._string()
            value = self._value(int(self._number("<I")))
            if value is not None:
                self.metadata[key] = value
        found = [self._tensor() for _ in range(n_tensors)]
        alignment = _whole(self.metadata, "general.alignment", 0, self._name) or _DEFAULT_ALIGNMENT
        start = -(-self._file.tell() // alignment) * alignment
        end = start + max((tensor.stop for _, tensor in found), default=0)
        if n_tensors and end > self._size:
            missing = end - self._size
            raise self._broken(
                f"the file is {missing} bytes shorter than its tensors: truncated or still copying"
            )
        self.tensors = {
            name: replace(tensor, start=start + tensor.start, stop=start + tensor.stop)
            for name, tensor in found
        }

    def _tensor(self) -> tuple[str, GgufTensor]:
        """One tensor with its name; offsets count from the end of the header."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._string()
        n_dims = int(self._number("<I"))
        if n_dims > _MAX_DIMS:
            raise self._broken(f"tensor {name!r} has {n_dims} dimensions")
        shape = tuple(int(self._number("<Q")) for _ in range(n_dims))[::-1]
        values = math.prod(shape)
        number, offset = int(self._number("<I")), int(self._number("<Q"))
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise self._broken(f"tensor {name!r} has an unknown type {number}") from None
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        self.parameters += values
        stop = offset + values // per_block * block_bytes
        return name, GgufTensor(kind.name, shape, self._shard, offset, stop)

    def _value(self, kind: int) -> Scalar | None:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind != _ARRAY:
            raise self._broken(f"metadata of unknown kind {kind}")
        inner, count = int(self._number("<I")), self._count("array elements")
        if inner in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[inner]))
            return None
        if inner != _STRING:
            raise self._broken(f"an array of unknown kind {inner}")
        for _ in range(count):
            self._skip(self._length())
        return None

    def _length(self) -> int:
        length = int(self._number("<Q"))
        if length > _MAX_STRING:
            raise self._broken(f"a string of {length} bytes")
        return length

    def _string(self) -> str:
        return self._take(self._length()).decode("utf-8", errors="replace")

    def _count(self, what: str) -> int:
        count = int(self._number("<Q"))
        if count > _MAX_COUNT:
            raise self._broken(f"{count} {what}")
        return count

    def _number(self, code: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return value

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise self._broken("it ends inside its header")
        return data

    def _skip(self, count: int) -> None:
        # Reading is faster than seeking for the short strings of a vocabulary, and notices the end.
        self._take(count)

    def _broken(self, reason: str) -> InputError:
        return InputError(f"{self._name}: {reason}", hint="Export or download the file again.")


def _counts(match: re.Match[str]) -> bool:
    """Whether a shard's name makes sense: 1 of 0 does not."""
    return 1 <= int(match["index"]) <= int(match["count"])


def _whole(metadata: Mapping[str, Scalar], key: str, default: int, name: str) -> int:
    """A count from the metadata; InputError for what is none."""
    value = metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(
            f"{name}: {key} is {str(value)[:40]!r}, not a count", hint="Export or download the file again."
        )
    return value


def _file_type(number: Scalar | None, tensors: Mapping[str, str]) -> str:
    """``Q4_K_M`` and the like from ``general.file_type``; the commonest tensor type where it says nothing."""
    from gguf import LlamaFileType

    try:
        kind = LlamaFileType(number)
        if kind is not LlamaFileType.GUESSED:
            return str(kind.name).removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        pass
    matrices = [kind for kind in tensors.values() if kind != "F32"] or ["F32"]
    return max(sorted(set(matrices)), key=matrices.count)
