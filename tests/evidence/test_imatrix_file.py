"""Importance matrices in both forms, and files that only claim to be one.

tests/codecs/test_llama_quantize.py holds the other half: llama-quantize makes the same bytes of such files.
"""

from __future__ import annotations

import hashlib
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qexport.errors import InputError, QexportError
from qexport.evidence.imatrix_file import ImportanceMatrix, read_imatrix

Entry = tuple[Any, Any]


def write_gguf(path: Path, entries: dict[str, Entry], **changes: Any) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type(changes.get("kind", "imatrix"))
    if "datasets" not in changes.get("without", ()):
        writer.add_array("imatrix.datasets", ["wiki.train.raw", "код.txt"])
    writer.add_uint32("imatrix.chunk_count", 40)
    if "chunk_size" not in changes.get("without", ()):
        writer.add_uint32("imatrix.chunk_size", 256)
    for key in changes.get("noise", ()):
        writer.add_float32(f"noise.{key}", float(key))
        writer.add_array(f"noise.{key}s", [float(key)] * 3)
        writer.add_bool(f"noise.{key}.seen", True)
    for name, (sums, counts) in entries.items():
        if sums is not None:
            writer.add_tensor(f"{name}.in_sum2", np.asarray(sums, changes.get("dtype", np.float32)))
        if counts is not None:
            writer.add_tensor(f"{name}.counts", np.asarray(counts, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy(
    entries: dict[str, tuple[int, list[float]]], tail: bytes = struct.pack("<ii", 40, 4) + b"wiki"
) -> bytes:
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += struct.pack(f"<{len(values)}f", *values)
    return data + tail


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


DENSE = {"blk.0.attn_q.weight": ([[2.0, 4.0, 0.0]], [[4.0]])}
EXPERTS = {"blk.0.ffn_up_exps.weight": ([[2.0, 4.0], [6.0, 9.0]], [[0.0], [3.0]])}


def test_gguf_form(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", DENSE | EXPERTS, noise=["nan", "1"])
    matrix = read_imatrix(path)
    assert matrix.form == "gguf"
    assert (matrix.chunk_count, matrix.chunk_size) == (40, 256)
    assert matrix.datasets == ("wiki.train.raw", "код.txt")
    assert matrix.label == "m.gguf"
    assert matrix.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(matrix.entries) == ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"]
    assert matrix.entries["blk.0.attn_q.weight"].tolist() == [[0.5, 1.0, 0.0]]
    # an expert that saw no token: no preference
    assert matrix.entries["blk.0.ffn_up_exps.weight"].tolist() == [[1.0, 1.0], [2.0, 3.0]]
    assert matrix.counts["blk.0.ffn_up_exps.weight"].tolist() == [0, 3]
    assert all(values.dtype == np.float32 for values in matrix.entries.values())
    assert "entries" not in repr(matrix)


def test_legacy_form(tmp_path: Path) -> None:
    data = legacy({"a.weight": (4, [2.0, 4.0]), "b.weight": (0, [3.0])})
    matrix = read_imatrix(saved(tmp_path / "m.dat", data))
    assert (matrix.form, matrix.chunk_count, matrix.chunk_size) == ("legacy", 40, 0)
    assert matrix.datasets == ("wiki",)
    assert matrix.entries["a.weight"].tolist() == [[0.5, 1.0]]
    assert matrix.entries["b.weight"].tolist() == [[3.0]]
    assert matrix.counts["a.weight"].tolist() == [4]


def test_legacy_tail_is_optional(tmp_path: Path) -> None:
    entries = {"a.weight": (1, [1.0])}
    bare = read_imatrix(saved(tmp_path / "bare", legacy(entries, b"")))
    assert (bare.chunk_count, bare.datasets) == (0, ())
    chunks = read_imatrix(saved(tmp_path / "chunks", legacy(entries, struct.pack("<i", 7))))
    assert (chunks.chunk_count, chunks.datasets) == (7, ())


def test_rows_for(tmp_path: Path) -> None:
    data = legacy({"exps.weight": (1, [1.0, 2.0, 3.0, 4.0])})
    matrix = read_imatrix(saved(tmp_path / "m.dat", data))
    found = matrix.rows_for("exps.weight", 2, 2)
    assert found is not None
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(InputError, match=r"has 4 values for exps\.weight, which needs 6"):
        matrix.rows_for("exps.weight", 3, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_bad_values_name_the_tensor(tmp_path: Path, value: float) -> None:
    path = write_gguf(tmp_path / "m.gguf", DENSE | {"blk.7.ffn_down.weight": ([[1.0, value]], [[2.0]])})
    with pytest.raises(InputError, match=r"blk\.7\.ffn_down\.weight has values"):
        read_imatrix(path)
    with pytest.raises(InputError, match=r"x\.weight has values"):
        read_imatrix(saved(tmp_path / "m.dat", legacy({"x.weight": (1, [value])})))


@pytest.mark.parametrize("count", [float("nan"), float("inf"), -3.0])
def test_bad_counts(tmp_path: Path, count: float) -> None:
    with pytest.raises(InputError, match=r"x\.weight has counts"):
        read_imatrix(write_gguf(tmp_path / "m.gguf", {"x.weight": ([[1.0, 2.0]], [[count]])}))


def test_bad_gguf_files(tmp_path: Path) -> None:
    def refused(entries: dict[str, Entry], match: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=match) as caught:
            read_imatrix(write_gguf(tmp_path / "m.gguf", entries, **changes))
        assert "llama-imatrix" in str(caught.value)

    refused({}, "type 'model' without", kind="model")
    refused({"x.weight": ([[1.0]], None)}, r"x\.weight has 1 sums and 0 counts")
    refused({"x.weight": ([[1.0, 2.0, 3.0]], [[1.0], [1.0]])}, r"x\.weight has 3 sums and 2 counts")
    refused(DENSE, "is not float32", dtype=np.float16)
    refused(DENSE, "is missing", without=["chunk_size"])
    refused(DENSE, "is missing", without=["datasets"])


def test_not_an_imatrix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_imatrix(tmp_path / "nothing")
    for data in (b"", b"\0\0\0\0", b"hello, this is a text file\n" * 9, b"GGUF", b"GGUF" + bytes(range(200))):
        with pytest.raises(InputError, match="not a usable importance matrix"):
            read_imatrix(saved(tmp_path / "f", data))


def test_absurd_lengths_allocate_nothing(tmp_path: Path) -> None:
    big = 2**62
    for data in (
        struct.pack("<i", 2**31 - 1) + bytes(1000),
        struct.pack("<ii", 1, 2**31 - 1) + bytes(1000),
        struct.pack("<ii4siii", 1, 4, b"name", 1, 2**31 - 1, 0) + bytes(1000),
        struct.pack("<ii4siii", 1, 4, b"name", 1, -5, 0) + bytes(1000),
        struct.pack("<ii", 1, -1) + bytes(1000),
        b"GGUF" + struct.pack("<IQQ", 3, big, 0) + bytes(1000),
        b"GGUF" + struct.pack("<IQQ", 3, 0, big) + bytes(1000),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, big) + bytes(1000),  # array of strings
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, big) + bytes(1000),  # array of numbers
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1) + bytes(1000),  # array of arrays
        b"GGUF" + struct.pack("<IQQQ9sIQIQ", 3, 1, 0, 9, b"x.in_sum2", 1, big, 0, 0) + bytes(1000),
        b"GGUF" + struct.pack("<IQQQ9sIQIQ", 3, 1, 0, 9, b"x.in_sum2", 2**31, 1, 0, 0) + bytes(1000),
    ):
        began = time.process_time()
        with pytest.raises(InputError):
            read_imatrix(saved(tmp_path / "f", data))
        assert time.process_time() - began < 1


def test_every_truncation_is_an_input_error(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", DENSE | EXPERTS).read_bytes()
    padding = 32  # the last tensor ends before the padding that GGUF wants after it
    for size in range(len(whole) - padding):
        with pytest.raises(InputError):
            read_imatrix(saved(tmp_path / "cut", whole[:size]))
    data = legacy({"a.weight": (4, [2.0, 4.0])}, b"")
    for size in range(len(data)):
        with pytest.raises(InputError):
            read_imatrix(saved(tmp_path / "cut", data[:size]))


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_an_input_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "damaged"
    if data.draw(st.booleans()):
        content = bytearray(write_gguf(tmp_path / "m.gguf", DENSE | EXPERTS).read_bytes())
    else:
        content = bytearray(legacy({"a.weight": (4, [2.0, 4.0]), "b.weight": (1, [1.0])}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        matrix = read_imatrix(saved(file, bytes(content)))
    except QexportError:
        return
    assert isinstance(matrix, ImportanceMatrix)
    assert all(np.isfinite(values).all() for values in matrix.entries.values())
