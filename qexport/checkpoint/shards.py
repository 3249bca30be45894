"""Planning safetensors files: exact headers and offsets before any weight is read.

Only the plan is made here; the executor writes the bytes where the plan says. Names, padding and index are
those of ``save_pretrained``, so that every reader finds the result as it would find the original:
``model.safetensors`` alone, or ``model-00001-of-0000N.safetensors`` with ``model.safetensors.index.json``.

Left out: splitting one tensor over files; the format does not allow it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from qexport.checkpoint.header import MAX_HEADER_BYTES
from qexport.checkpoint.layout import INDEX_NAME, SINGLE_NAME, shard_files
from qexport.checkpoint.tensors import DTYPE_BYTES, Sized
from qexport.errors import InputError


@dataclass(frozen=True)
class TensorSpec(Sized):
    """A tensor to be written: ``dtype`` is a safetensors word (``BF16``, ``F8_E4M3``, ``U8``...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ShardPlan:
    """One file: ``header`` (length field, JSON, padding) at byte 0, then each tensor at its offset.

    ``offsets`` are bytes from the beginning of the file, in file order; ``size`` is the whole file's.
    """

    file: str
    header: bytes
    offsets: Mapping[str, int]
    size: int


@dataclass(frozen=True)
class CheckpointPlan:
    """All files of one checkpoint; ``index`` is the index file's bytes, ``None`` for a single file."""

    shards: tuple[ShardPlan, ...]
    index: bytes | None
    index_file: str = INDEX_NAME

    @property
    def size(self) -> int:
        """Bytes of all files together, index included."""
        return sum(shard.size for shard in self.shards) + len(self.index or b"")


def group_like(specs: Iterable[TensorSpec], files: Mapping[str, str]) -> list[list[TensorSpec]]:
    """Group as another checkpoint does: ``files`` says which file each tensor came from.

    Groups follow the sorted file names; tensors that came from none (a grafted head) share a last group.
    """
    groups: dict[str | None, list[TensorSpec]] = {}
    for spec in specs:
        groups.setdefault(files.get(spec.name), []).append(spec)
    new = groups.pop(None, None)
    ordered = [group for _, group in sorted(groups.items(), key=lambda item: item[0] or "")]
    return [*ordered, new] if new else ordered


def plan_shards(
    groups: Sequence[Sequence[TensorSpec]],
    *,
    metadata: Mapping[str, str] | None = None,
    parameters: int | None = None,
    keep_order: bool = False,
    always_index: bool = False,
    index_indent: int = 2,
) -> CheckpointPlan:
    """Plan one file per group.

    Inside a file, tensors keep their order except that wider dtypes come first, as the official writer does
    (https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs, ``prepare``): every
    tensor then begins at a multiple of its item size.

    Args:
        groups: tensors of each file, in order.
        keep_order: only tensors whose size is no multiple of 8 bytes leave their place, for the end of the
            file; the others then begin at multiples of 8.
        always_index: an index for a single file, too, as mlx-lm writes it.
        index_indent: of the index's JSON.
        metadata: text for the header; ``{"format": "pt"}``, which transformers asks for, when not given.
        parameters: the model's parameter count for the index; the number of stored values when not given
            (not the same once values are packed).

    Raises:
        InputError: no tensors, a name twice, or a header beyond what readers take (100 MB).
    """
    names = [spec.name for group in groups for spec in group]
    if not names or not all(groups):
        raise InputError("There are no tensors to write into a file.")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"Tensor {twice!r} would be written twice.")
    count = len(groups)
    files = [SINGLE_NAME] if count == 1 else shard_files("model", count)
    text = {"format": "pt"} if metadata is None else dict(metadata)
    shards = tuple(
        _plan_file(file, _kept(group) if keep_order else _wide_first(group), text)
        for file, group in zip(files, groups, strict=True)
    )
    if count == 1 and not always_index:
        return CheckpointPlan(shards, None)
    specs = [spec for group in groups for spec in group]
    index = {
        "metadata": {
            "total_parameters": sum(spec.numel for spec in specs) if parameters is None else parameters,
            "total_size": sum(spec.nbytes for spec in specs),
        },
        "weight_map": {spec.name: file for file, group in zip(files, groups, strict=True) for spec in group},
    }
    # Layout of save_pretrained's own index file.
    return CheckpointPlan(shards, (json.dumps(index, indent=index_indent, sort_keys=True) + "\n").encode())


def _wide_first(group: Sequence[TensorSpec]) -> list[TensorSpec]:
    return sorted(group, key=lambda spec: -DTYPE_BYTES[spec.dtype])  # stable


def _kept(group: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [
        *(spec for spec in group if spec.nbytes % 8 == 0),
        *_wide_first([spec for spec in group if spec.nbytes % 8]),
    ]


def _plan_file(file: str, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> ShardPlan:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    starts: dict[str, int] = {}
    at = 0
    for spec in specs:
        starts[spec.name] = at
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [at, at + spec.nbytes],
        }
        at += spec.nbytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        message = f"The header of {file} would take {len(text)} bytes, more than readers accept."
        raise InputError(message, hint="Use smaller shards.")
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + start for name, start in starts.items()}
    return ShardPlan(file, header, MappingProxyType(offsets), len(header) + at)
