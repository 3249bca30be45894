"""Headers: hand-made bytes, the official reader as the judge, and anything at all from hypothesis."""

import json
import struct
import tracemalloc

import pytest
import safetensors
import torch
from checkpoint_folders import some_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from qexport.checkpoint.header import parse_header, read_header
from qexport.checkpoint.tensors import DTYPE_BYTES, StoredTensor
from qexport.errors import InputError

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def framed(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def header(entries: object, data: bytes = b"1234") -> bytes:
    return framed(json.dumps(entries).encode(), data)


def parsed(data: bytes):
    return parse_header(data, file="x.safetensors", file_size=len(data))


def official_takes(data: bytes) -> bool:
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return False
    return True


def test_a_file_made_by_hand():
    text = b'{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},'
    text += b'"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   '
    tensors, metadata = parsed(framed(text, bytes(16)))
    base = 8 + len(text)
    assert list(tensors.values()) == [
        StoredTensor("a", "F32", (), "x.safetensors", base, base + 4),
        StoredTensor("b", "BF16", (2, 3), "x.safetensors", base + 4, base + 16),
    ]
    assert metadata == {"format": "pt"}


def test_the_data_itself_is_not_needed():
    data = header({"a": ONE})
    tensors, _ = parse_header(data[:-4], file="x", file_size=len(data))
    assert tensors["a"].stop == len(data)


def test_a_file_on_disk(tmp_path):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    raw = (tmp_path / "m.safetensors").read_bytes()
    found, metadata = read_header(tmp_path / "m.safetensors")
    assert metadata == {"format": "pt"}
    assert {name: found[name].shape for name in found} == {n: tuple(t.shape) for n, t in tensors.items()}
    expected = {name: bytes(entry["data"]) for name, entry in safetensors.deserialize(raw)}
    assert {name: raw[t.start : t.stop] for name, t in found.items()} == expected


BAD = {
    "nothing": (b"", "too short"),
    "seven bytes": (b"1234567", "too short"),
    "absurd length": (struct.pack("<Q", 2**63) + b"{}", f"would take {2**63} bytes"),
    "over the limit": (struct.pack("<Q", 100_000_001), "would take 100000001 bytes"),
    "length past the end": (struct.pack("<Q", 10) + b"{}", "cut short inside its header: it has 10 bytes"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
    "empty header": (framed(b""), "not JSON"),
    "not JSON": (framed(b"{'a': 1}"), "not JSON"),
    "more after JSON": (framed(b"{} {}"), "not JSON"),
    "zero padding": (framed(b"{}\0\0\0"), "not JSON"),
    "not UTF-8": (framed(b'{"\xff": 1}'), "not UTF-8"),
    "a list": (framed(b"[]"), "not a JSON object"),
    "deep": (framed(b"[" * 200_000), "nested too deeply"),
    "NaN": (framed(b'{"a": NaN}'), "not a whole number"),
    "surrogate": (framed(b'{"\\ud800": 1}'), "not valid text"),
    "twice": (framed(b'{"a": 0, "a": 0}'), "has 'a' twice"),
    "twice in disguise": (framed(b'{"a": 0, "\\u0061": 0}'), "has 'a' twice"),
    "metadata not text": (header({"__metadata__": {"a": 1}}, b""), "other than text"),
    "metadata a list": (header({"__metadata__": []}, b""), "not an object"),
    "entry a list": (header({"a": ["F32", [1], [0, 4]]}), "exactly dtype, shape and data_offsets"),
    "field missing": (header({"a": {"dtype": "F32", "shape": [1]}}), "exactly dtype, shape and data_offsets"),
    "field unknown": (header({"a": {**ONE, "extra": 1}}), "exactly dtype, shape and data_offsets"),
    "dtype unknown": (header({"a": {**ONE, "dtype": "F4"}}), "unknown dtype 'F4'"),
    "dtype a list": (header({"a": {**ONE, "dtype": ["F32"]}}), "unknown dtype"),
    "shape negative": (header({"a": {**ONE, "shape": [-1]}}), "negative or beyond 64 bits: -1"),
    "shape minus zero": (framed(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'), "negative"),
    "shape fractional": (header({"a": {**ONE, "shape": [1.0]}}), "not a whole number"),
    "shape true": (header({"a": {**ONE, "shape": [True]}}), "not a list of sizes"),
    "shape text": (header({"a": {**ONE, "shape": "1"}}), "not a list of sizes"),
    "shape beyond 64 bits": (header({"a": {**ONE, "shape": [2**64]}}), "beyond 64 bits"),
    "shape overflows": (header({"a": {**ONE, "shape": [2**40, 2**40]}}), "overflows 64 bits"),
    "shape overflows to zero": (
        header({"a": {"dtype": "F32", "shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}}, b""),
        "overflows",
    ),
    "number of a million digits": (framed(b'{"a": ' + b"9" * 1_000_000 + b"}"), "beyond 64 bits"),
    "offsets reversed": (header({"a": {**ONE, "data_offsets": [4, 0]}}), "not [begin, end]"),
    "offsets three": (header({"a": {**ONE, "data_offsets": [0, 2, 4]}}), "not [begin, end]"),
    "too few bytes": (header({"a": {**ONE, "shape": [2]}}), "takes 8 bytes as F32 but has 4"),
    "gap at the start": (header({"a": {**ONE, "data_offsets": [4, 8]}}, bytes(8)), "leaves a gap"),
    "gap between": (header({"a": ONE, "b": {**ONE, "data_offsets": [8, 12]}}, bytes(12)), "leaves a gap"),
    "overlap": (header({"a": ONE, "b": {**ONE, "data_offsets": [2, 6]}}, bytes(6)), "overlaps"),
    "same range": (header({"a": ONE, "b": ONE}), "overlaps"),
    "cut short": (header({"a": ONE}, b"1"), "3 missing"),
    "bytes left over": (header({"a": ONE}, b"12345"), "1 bytes after the last tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case, tmp_path):
    data, message = BAD[case]
    with pytest.raises(InputError) as caught:
        parsed(data)
    assert message in caught.value.message
    assert caught.value.message.startswith("x.safetensors")
    assert caught.value.hint
    assert len(str(caught.value)) < 600
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(InputError) as from_disk:
        read_header(tmp_path / "x.safetensors")
    assert from_disk.value.message == caught.value.message


# Where the official reader guesses, and this one refuses.
STRICTER = {"twice", "twice in disguise", "entry a list", "field unknown", "dtype unknown"}


@pytest.mark.parametrize("case", sorted(BAD.keys() - STRICTER))
def test_the_official_reader_refuses_it_too(case):
    assert not official_takes(BAD[case][0])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"^gone cannot be read: No such file or directory") as caught:
        read_header(tmp_path / "gone")
    assert str(tmp_path) not in str(caught.value)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data):
    try:
        parsed(data)
    except InputError:
        return
    assert official_takes(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
near_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BYTES, "F4"]) | json_values,
        "shape": st.lists(st.integers(0, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | json_values,
    }
)
near_headers = st.dictionaries(
    st.sampled_from(["a", "b", "é", "__metadata__"]) | st.text(max_size=4),
    near_entries | json_values,
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(near_headers, st.integers(0, 48))
def test_whatever_the_official_reader_refuses_is_refused(entries, size):
    data = header(entries, bytes(size))
    try:
        found, _ = parsed(data)
    except InputError:
        return
    expected = dict(safetensors.deserialize(data))
    assert {n: (list(t.shape), t.dtype) for n, t in found.items()} == {
        n: (e["shape"], e["dtype"]) for n, e in expected.items()
    }


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file(data):
    raw = bytearray(save(some_tensors(), metadata={"format": "pt"}))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 700))
        raw[at] = data.draw(st.integers(0, 255))
    stop = data.draw(st.sampled_from([len(raw), len(raw) - 1, 300, 9]))
    damaged = bytes(raw[:stop])
    try:
        parsed(damaged)
    except InputError:
        return
    assert official_takes(damaged)


valid_layouts = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda name: name != "__metadata__"),
    st.tuples(
        st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
        st.lists(st.integers(0, 4), max_size=4),
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(valid_layouts)
def test_whatever_the_official_writer_makes_is_read(layout):
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in layout.items()}
    data = save(tensors)
    found, _ = parsed(data)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    assert [t.start for t in found.values()] == sorted(t.start for t in found.values())


def test_a_lying_length_allocates_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 2**40) + b"{")
        stream.truncate(2**33)  # sparse
    tracemalloc.start()
    with pytest.raises(InputError):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
