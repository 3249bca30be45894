"""The header against gguf-py: the same bytes as its writer, and what its reader finds."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from qexport.container.gguf_write import (
    ALIGNMENT,
    KV,
    TensorInfo,
    ValueType,
    array,
    boolean,
    f32,
    header_bytes,
    i32,
    padded,
    shard_metadata,
    string,
    u16,
    u32,
)

METADATA = {
    "general.architecture": string("llama"),
    "a.u32": u32(7),
    "a.u16": u16(65535),
    "a.u64": KV(ValueType.U64, 1 << 40),
    "a.i32": i32(-3),
    "a.f32": f32(1e-6),
    "a.bool": boolean(True),
    "a.text": string("naïve 河"),
    "a.ints": array(ValueType.I32, [1, -2, 3]),
    "a.floats": array(ValueType.F32, [0.5, -1000.0]),
    "a.flags": array(ValueType.BOOL, [True, False]),
    "a.texts": array(ValueType.STRING, ["", "Ġa", "b c"]),
}
TENSORS = {"w": np.arange(24, dtype=np.float32).reshape(4, 6), "v": np.ones(3, dtype=np.float16)}


def write_with_gguf_py(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, kv in list(METADATA.items())[1:]:
        value = list(kv.value) if kv.type is ValueType.ARRAY else kv.value
        writer.add_key_value(key, value, gguf.GGUFValueType(kv.type))
    for name, data in TENSORS.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_same_bytes_as_gguf_py(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_with_gguf_py(path)
    infos, offset = [], 0
    for name, data in TENSORS.items():
        infos.append(TensorInfo(name, data.shape, 0 if data.dtype == np.float32 else 1, offset))
        offset += padded(data.nbytes)
    header = header_bytes(METADATA, infos)
    assert len(header) % ALIGNMENT == 0
    assert path.read_bytes()[: len(header)] == header
    assert len(path.read_bytes()) == len(header) + offset


def test_shards_carry_split_keys() -> None:
    first, second = (shard_metadata(METADATA, n, 2, 5) for n in (0, 1))
    assert list(first)[-3:] == list(second) == ["split.no", "split.count", "split.tensors.count"]
    assert second == {"split.no": u16(1), "split.count": u16(2), "split.tensors.count": i32(5)}
    assert shard_metadata(METADATA, 0, 1, 5) == METADATA


def test_shards_equal_gguf_py(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama", split_max_tensors=1)
    for name, data in TENSORS.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base = {"general.architecture": string("llama")}
    for n, (name, data) in enumerate(TENSORS.items()):
        info = TensorInfo(name, data.shape, 0 if data.dtype == np.float32 else 1, 0)
        header = header_bytes(shard_metadata(base, n, 2, 2), [info])
        written = (tmp_path / f"x-{n + 1:05d}-of-00002.gguf").read_bytes()
        assert written[: len(header)] == header


def test_empty_array_is_refused() -> None:
    with pytest.raises(ValueError, match="empty array"):
        array(ValueType.I32, [])
