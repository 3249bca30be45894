"""GGUF key-values and the bytes a GGUF file begins with.

A GGUF (version 3, little endian) file is a header, typed key-values, one record per tensor, padding, and the
tensors' bytes at 32-byte aligned offsets. The loader reads all of it with ``gguf_init_from_reader`` in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/gguf.cpp. A value's type is part of the contract (a
``u32`` where the loader asks for ``u32``), so a value here always carries its type: :func:`u32`, :func:`f32`
and so on. ``general.alignment`` is never written because 32 is the default.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import chain
from typing import Any

ALIGNMENT = 32
MAGIC = b"GGUF"
_VERSION = 3


class ValueType(IntEnum):
    """The type words of ``enum gguf_type``."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


PACKING = {
    ValueType.U8: "B",
    ValueType.I8: "b",
    ValueType.U16: "H",
    ValueType.I16: "h",
    ValueType.U32: "I",
    ValueType.I32: "i",
    ValueType.F32: "f",
    ValueType.BOOL: "?",
    ValueType.U64: "Q",
    ValueType.I64: "q",
    ValueType.F64: "d",
}
"""Struct codes of the scalars."""


@dataclass(frozen=True)
class KV:
    """One value and its type; ``item`` is the type of an array's items."""

    type: ValueType
    value: Any
    item: ValueType | None = None

    @cached_property
    def packed(self) -> bytes:
        """The value as it stands in a file; the same array goes into the header of every type."""
        return _value_bytes(self)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's record: ``shape`` in torch order (rows first), ``offset`` from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


def u16(value: int) -> KV:
    return KV(ValueType.U16, int(value))


def u32(value: int) -> KV:
    return KV(ValueType.U32, int(value))


def i32(value: int) -> KV:
    return KV(ValueType.I32, int(value))


def f32(value: float) -> KV:
    return KV(ValueType.F32, float(value))


def boolean(value: bool) -> KV:
    return KV(ValueType.BOOL, bool(value))


def string(value: str) -> KV:
    return KV(ValueType.STRING, value)


def array(item: ValueType, values: Sequence[Any]) -> KV:
    """An array; gguf-py stores Python integers as ``I32`` and floats as ``F32``, and so does our metadata."""
    if not values:
        raise ValueError("GGUF has no use for an empty array: leave the key out")
    return KV(ValueType.ARRAY, tuple(values), item)


def padded(size: int, alignment: int = ALIGNMENT) -> int:
    """``size`` rounded up to the alignment.

    >>> padded(33)
    64
    """
    return -(-size // alignment) * alignment


def header_bytes(metadata: Mapping[str, KV], tensors: Sequence[TensorInfo]) -> bytes:
    """Everything before the first tensor's bytes, padded so that the data section starts aligned."""
    parts = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, kv in metadata.items():
        parts += [_string_bytes(key), struct.pack("<I", kv.type), kv.packed]
    for tensor in tensors:
        # ggml counts dimensions from the fastest one: ne[0] is torch's last.
        dims = tuple(reversed(tensor.shape))
        parts.append(_string_bytes(tensor.name))
        parts.append(
            struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type_id, tensor.offset),
        )
    size = sum(map(len, parts))
    parts.append(b"\0" * (padded(size) - size))
    return b"".join(parts)


def shard_metadata(metadata: Mapping[str, KV], index: int, count: int, tensors: int) -> dict[str, KV]:
    """The key-values of shard ``index`` of ``count``; ``tensors`` counts all shards' tensors.

    Only the first shard carries the model's own key-values; each carries the three ``split.*`` keys, which
    ``llama_model_loader`` checks against the file name:
    https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model-loader.cpp
    """
    if count <= 1:
        return dict(metadata)
    split = {"split.no": u16(index), "split.count": u16(count), "split.tensors.count": i32(tensors)}
    return {**metadata, **split} if index == 0 else split


def _string_bytes(text: str | bytes) -> bytes:
    data = text.encode("utf-8") if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _value_bytes(kv: KV) -> bytes:
    if kv.type is ValueType.STRING:
        return _string_bytes(kv.value)
    if kv.type is not ValueType.ARRAY:
        return struct.pack("<" + PACKING[kv.type], kv.value)
    if kv.item is None:
        raise ValueError("an array needs the type of its items")
    head = struct.pack("<IQ", kv.item, len(kv.value))
    if kv.item is ValueType.STRING:
        texts = [text if isinstance(text, bytes) else text.encode("utf-8") for text in kv.value]
        lengths = {size: struct.pack("<Q", size) for size in set(map(len, texts))}
        sizes = map(lengths.__getitem__, map(len, texts))
        return head + b"".join(chain.from_iterable(zip(sizes, texts, strict=True)))
    return head + struct.pack(f"<{len(kv.value)}{PACKING[kv.item]}", *kv.value)
