"""Plans of safetensors files: read back by the official library, and equal to its own bytes."""

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from qexport.checkpoint.header import parse_header
from qexport.checkpoint.shards import TensorSpec, group_like, plan_shards
from qexport.checkpoint.tensors import DTYPE_BYTES
from qexport.errors import InputError

WORDS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8"}

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(
    lambda name: name != "__metadata__"
)
specs = st.builds(
    TensorSpec,
    names,
    st.sampled_from([*WORDS.values(), "F8_E4M3", "U32"]),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
)


def assembled(shard, values):
    """The file that the plan describes."""
    data = bytearray(shard.size)
    data[: len(shard.header)] = shard.header
    for name, offset in shard.offsets.items():
        raw = values[name]
        data[offset : offset + len(raw)] = raw
    return bytes(data)


@settings(max_examples=100, deadline=None)
@given(st.lists(specs, min_size=1, max_size=8, unique_by=lambda spec: spec.name), st.integers(1, 4))
def test_the_official_reader_finds_every_tensor(tensors, each):
    groups = [tensors[at : at + each] for at in range(0, len(tensors), each)]
    plan = plan_shards(groups)
    values = {
        spec.name: bytes((i * 7 + j) % 251 for j in range(spec.nbytes)) for i, spec in enumerate(tensors)
    }
    found = {}
    for shard, group in zip(plan.shards, groups, strict=True):
        data = assembled(shard, values)
        assert len(data) == shard.size
        assert len(shard.header) % 8 == 0
        for name, tensor in load(data).items():
            found[name] = (
                tuple(tensor.shape),
                tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
            )
        own, metadata = parse_header(data, file=shard.file, file_size=len(data))
        assert metadata == {"format": "pt"}
        assert {name: t.start for name, t in own.items()} == dict(shard.offsets)
        by_name = {spec.name: spec for spec in group}
        assert all(offset % DTYPE_BYTES[by_name[name].dtype] == 0 for name, offset in shard.offsets.items())
    assert found == {spec.name: (spec.shape, values[spec.name]) for spec in tensors}


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        names,
        st.tuples(st.sampled_from([torch.float32, torch.bfloat16]), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_the_header_is_the_official_writers_own(layout):
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in layout.items()}
    # Its order: wider dtype first, then name.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name.encode()))
    plan = plan_shards([[TensorSpec(n, WORDS[tensors[n].dtype], tuple(tensors[n].shape)) for n in ordered]])
    expected = save(tensors, metadata={"format": "pt"})
    assert plan.shards[0].header == expected[: len(plan.shards[0].header)]
    assert plan.shards[0].size == len(expected)


def test_one_file_has_no_index():
    plan = plan_shards([[TensorSpec("a", "BF16", (2, 3))]])
    assert [shard.file for shard in plan.shards] == ["model.safetensors"]
    assert plan.index is None
    text = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
    text += b" " * (-len(text) % 8)
    assert plan.shards[0].header == struct.pack("<Q", len(text)) + text
    assert plan.shards[0].size == plan.size == 8 + len(text) + 12


def test_several_files_have_one():
    groups = [[TensorSpec("b", "BF16", (2, 3)), TensorSpec("a", "F32", (4,))], [TensorSpec("c", "U8", (5,))]]
    plan = plan_shards(groups)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [shard.file for shard in plan.shards] == files
    assert list(plan.shards[0].offsets) == ["a", "b"]  # wider first
    assert json.loads(plan.index) == {
        "metadata": {"total_parameters": 15, "total_size": 33},
        "weight_map": {"a": files[0], "b": files[0], "c": files[1]},
    }
    assert plan.index.endswith(b"\n}\n")
    assert plan.size == sum(shard.size for shard in plan.shards) + len(plan.index)
    assert json.loads(plan_shards(groups, parameters=99).index)["metadata"]["total_parameters"] == 99


def test_grouping_like_the_source():
    tensors = [TensorSpec(name, "BF16", (1,)) for name in ("z", "mtp.a", "a", "mtp.b", "k")]
    files = {"z": "model-00001-of-00002.safetensors", "a": "model-00002-of-00002.safetensors"}
    groups = group_like(tensors, {**files, "k": files["z"]})
    assert [[spec.name for spec in group] for group in groups] == [["z", "k"], ["a"], ["mtp.a", "mtp.b"]]


@pytest.mark.parametrize("groups", [[], [[]], [[TensorSpec("a", "U8", (1,))], []]])
def test_nothing_to_write(groups):
    with pytest.raises(InputError, match="no tensors"):
        plan_shards(groups)


def test_a_name_twice():
    with pytest.raises(InputError, match="'a' would be written twice"):
        plan_shards([[TensorSpec("a", "U8", (1,))], [TensorSpec("a", "U8", (1,))]])
