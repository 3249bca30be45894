"""What a GGUF file says of itself, all shards together: architecture, type, tensors, size."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from qexport.checkpoint.paths import open_regular
from qexport.container.gguf_read import DamagedGguf, GgufTensor, Scalar, count_in, read_gguf_header
from qexport.errors import InputError

# Of files that are older, another time of change is seen after every write, on every file system.
_OLD = 2 * 10**9  # ns
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf$")


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


def shard_names(stem: str, count: int) -> list[str]:
    """``stem.gguf``, or ``stem-00001-of-0000N.gguf`` (llama.cpp src/llama.cpp, llama_split_path)."""
    if count <= 1:
        return [f"{stem}.gguf"]
    return [f"{stem}-{index:05d}-of-{count:05d}.gguf" for index in range(1, count + 1)]


def shard_paths(path: Path) -> list[Path]:
    """Every file of the GGUF that ``path`` is a shard of, in order; ``[path]`` when it is whole."""
    match = _SHARD.match(path.name)
    if match is None or not _counts(match) or int(match["count"]) == 1:
        return [path]
    return [path.with_name(name) for name in shard_names(match["stem"], int(match["count"]))]


def homes_of(path: Path) -> list[Path]:
    """Where files lie that go with the one at ``path``, the nearest first: its folder, and the one above that
    where it is in a folder of its type (``Q4_K_M/Name-Q4_K_M-00001-of-00002.gguf``)."""
    folder = path.absolute().parent
    inner = bool(folder.name) and folder.name in path.name
    return [path.parent, *([folder.parent] if inner else [])]


def read_gguf(path: Path) -> GgufInfo:
    """Read the header of ``path`` and of its other shards: once, as long as they stay as they are.

    Raises:
        InputError: a file is missing, is not a GGUF, or is shorter than its tensors.
    """
    match = _SHARD.match(path.name)
    if match is not None and not _counts(match):
        raise InputError(f"{path.name}: there is no shard {match['index']} of {match['count']}")
    paths = tuple(shard_paths(path))
    states = tuple(map(_state, paths))
    old = all(state is not None and time.time_ns() - max(state[-2:]) > _OLD for state in states)
    return _as_before(path, paths, states) if old else _read(path, paths)


def _state(path: Path) -> tuple[int, ...] | None:
    """What another file, or another content, has another of; at last when it was changed, in ns."""
    try:
        found = path.stat()
    except OSError:
        return None  # who opens it says why
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=8)
def _as_before(path: Path, paths: tuple[Path, ...], states: tuple[tuple[int, ...] | None, ...]) -> GgufInfo:
    """Each step of a verification asks for the same headers, with vocabularies of a quarter million texts."""
    return _read(path, paths)


def _read(path: Path, paths: Sequence[Path]) -> GgufInfo:
    metadata: dict[str, Scalar] = {}
    entries: dict[str, GgufTensor] = {}
    size = 0
    part = path
    try:
        for shard, part in enumerate(paths):
            with os.fdopen(open_regular(part, part.name), "rb") as file:
                length = os.fstat(file.fileno()).st_size
                header = read_gguf_header(file, length, shard=shard)
            size += length
            # The first shard has the model's metadata, the others only their own split.* keys.
            metadata = {**header.metadata, **metadata}
            entries.update(header.tensors)
        part = path
        return _info(paths, size, metadata, entries)
    except OSError as error:
        raise InputError(f"{part.name}: {error.strerror or error}") from error
    except DamagedGguf as error:
        raise InputError(f"{part.name}: {error}", hint="Export or download the file again.") from None


def _info(
    paths: Sequence[Path], size: int, metadata: Mapping[str, Scalar], entries: Mapping[str, GgufTensor]
) -> GgufInfo:
    for key in ("split.no", "split.count"):
        count_in(metadata, key, 0)
    declared = count_in(metadata, "split.tensors.count", len(entries))
    if declared != len(entries):
        raise DamagedGguf(f"the shards hold {len(entries)} tensors, their headers promise {declared}")
    tensors = {name: entry.type_name for name, entry in entries.items()}
    architecture = str(metadata.get("general.architecture", ""))
    return GgufInfo(
        name=paths[0].name,
        size=size,
        shards=len(paths),
        architecture=architecture,
        file_type=_file_type(metadata.get("general.file_type"), tensors),
        tensors=tensors,
        parameters=sum(math.prod(entry.shape) for entry in entries.values()),
        nextn_layers=count_in(metadata, f"{architecture}.nextn_predict_layers", 0),
        context_length=count_in(metadata, f"{architecture}.context_length", 0),
        chat_template=bool(metadata.get("tokenizer.chat_template")),
        metadata=metadata,
        entries=entries,
    )


def _counts(match: re.Match[str]) -> bool:
    """Whether a shard's name makes sense: 1 of 0 does not."""
    return 1 <= int(match["index"]) <= int(match["count"])


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
