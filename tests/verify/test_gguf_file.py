"""The header reader: what it finds, and that nothing broken makes it choke."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from verify_fakes import VOCABULARY, write_llama

from qexport.container.gguf_file import read_gguf, shard_paths
from qexport.errors import InputError


def test_a_whole_file(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", nextn=1, head=False, template="{{ messages }}")
    info = read_gguf(path)
    assert (info.architecture, info.file_type, info.shards) == ("llama", "F32", 1)
    assert info.size == path.stat().st_size
    assert len(info.tensors) == 2 * 9 + 3
    assert info.parameters == 2 * VOCABULARY * 64 + 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)
    assert info.bits_per_weight == pytest.approx(32, rel=0.1)
    assert info.nextn_layers == 1
    assert info.chat_template
    assert not info.head_only
    assert not info.head_tensors
    assert read_gguf(write_llama(tmp_path / "head.gguf", nextn=1)).head_tensors


def test_it_reads_what_ggufs_own_reader_reads(tmp_path):
    import gguf

    path = write_llama(tmp_path / "tiny.gguf")
    theirs = gguf.GGUFReader(path)
    assert read_gguf(path).tensors == {t.name: t.tensor_type.name for t in theirs.tensors}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends inside its header"),
        (b"GG", "ends inside its header"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 40) + bytes(9), "a string of"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 99),
            "kind 99",
        ),
    ],
)
def test_a_broken_file_is_an_input_error(tmp_path, content, reason):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_gguf(path)


def test_a_truncated_file_is_told_by_its_tensors(tmp_path):
    whole = write_llama(tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:-1000])
    with pytest.raises(InputError, match="shorter than its tensors"):
        read_gguf(path)


def test_any_damage_to_the_header_reads_or_is_an_input_error(tmp_path):
    whole = write_llama(tmp_path / "tiny.gguf", layers=1).read_bytes()
    path = tmp_path / "damaged.gguf"
    choose = random.Random(7)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[choose.randrange(9000)] = choose.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            read_gguf(path)


def test_shards_are_found_from_any_of_them(tmp_path):
    names = [path.name for path in shard_paths(tmp_path / "m-00002-of-00003.gguf")]
    assert names == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert shard_paths(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]


def test_a_missing_shard_is_named(tmp_path):
    write_llama(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(InputError, match="m-00002-of-00002"):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize(
    "key",
    [
        "general.alignment",
        "llama.nextn_predict_layers",
        "split.no",
        "split.count",
        "split.tensors.count",
    ],
)
def test_a_count_that_is_a_string_is_an_input_error(tmp_path, key):
    path = write_llama(tmp_path / "tiny.gguf", strings=[key])
    with pytest.raises(InputError, match=f"{key} is 'many', not a count"):
        read_gguf(path)


@pytest.mark.parametrize("name", ["x-00001-of-00000.gguf", "x-00000-of-00002.gguf", "x-00003-of-00002.gguf"])
def test_a_shard_that_cannot_be_is_an_input_error(tmp_path, name):
    path = write_llama(tmp_path / name)
    assert shard_paths(path) == [path]
    with pytest.raises(InputError, match="there is no shard"):
        read_gguf(path)


def test_names_that_are_not_text_and_counts_beyond_the_file_are_input_errors(tmp_path):
    """Once for models and once for importance matrices: both are read by the one reader."""
    from qexport.evidence.imatrix_file import read_imatrix

    name = b"GGUF" + struct.pack("<IQQQ4sII", 3, 0, 1, 4, b"\xff\xfe\xfd\xfc", 4, 1) + bytes(99)
    many = b"GGUF" + struct.pack("<IQQ", 3, 1 << 20, 0) + bytes(99)
    for content, reason in ((name, "a name is not text"), (many, "1048576 tensors with 99 bytes left")):
        path = tmp_path / "damaged.gguf"
        path.write_bytes(content)
        for read in (read_gguf, read_imatrix):
            with pytest.raises(InputError, match=reason):
                read(path)
