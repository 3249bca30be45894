"""Every key, type and value against what llama.cpp's converter wrote for the same checkpoint."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType
from make_metadata_golden import GOLDEN, plain
from metadata_cases import CASES, view_of
from oracle import toolchain
from zoo_types import Zoo, ZooCopy

from qexport.container.gguf_write import KV, ValueType
from qexport.formats.gguf.general import GeneralOptions, ParameterCounts
from qexport.formats.gguf.metadata import MetadataOptions, build_metadata

BF16 = 32
LABEL = "Tiny-Model-3M-Instruct"


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def comparable(kv: KV) -> list[Any]:
    """[types, value] as the golden file has it: read back, so floats are float32."""
    types = [GGUFValueType(kv.type).name]
    value = list(kv.value) if kv.type is ValueType.ARRAY else kv.value
    if kv.item is not None:
        types.append(GGUFValueType(kv.item).name)
    if ValueType.F32 in (kv.type, kv.item):
        narrow = [struct.unpack("<f", struct.pack("<f", v))[0] for v in (value if kv.item else [value])]
        value = narrow if kv.item else narrow[0]
    return [types, plain(value)]


@pytest.mark.parametrize("name", sorted(CASES))
def test_equals_converter(name: str, zoo_copy: ZooCopy) -> None:
    case = CASES[name]
    folder = zoo_copy(case.zoo, **case.options)
    if case.edit:
        case.edit(folder)
    expected = golden()[name]
    total, shared, expert, experts = expected["counts"]
    found, _ = build_metadata(
        view_of(folder, mtp=case.mtp, label=LABEL),
        file_type=BF16,
        counts=ParameterCounts(total, shared, expert, experts),
    )
    assert {key: comparable(kv) for key, kv in found.items()} == expected["keys"]
    assert list(found) == list(expected["keys"])


def test_says_what_the_user_says(zoo: Zoo) -> None:
    view = view_of(zoo("qwen2"), mtp=False, label="my-org/Tiny-Coder-7B-v2")
    general = GeneralOptions(name="Mine", quantized_by="me", repo_url="https://huggingface.co/me/mine")
    options = MetadataOptions(
        general=general, pre_tokenizer="llama-bpe", overrides={"a.b": KV(ValueType.U8, 1)}
    )
    found, notes = build_metadata(view, file_type=1, counts=ParameterCounts(10, 10), options=options)
    assert found["general.name"].value == "Mine"
    assert found["general.quantized_by"].value == "me"
    assert found["general.repo_url"].value == "https://huggingface.co/me/mine"
    assert found["general.organization"].value == "My Org"
    assert found["tokenizer.ggml.pre"].value == "llama-bpe"
    assert found["a.b"] == KV(ValueType.U8, 1)
    assert found["general.file_type"].value == 1
    assert notes == []


def test_no_host_path_enters(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("qwen2")
    (folder / "README.md").write_text(
        "---\nbase_model:\n- ./outputs/x\n- Qwen/Qwen2.5-7B\ndatasets: /home/me/train.jsonl\n"
        "tags:\n- base_model:adapter:/data/me/run\n- chat\ndescription: trained in /home/me/work\n---\n",
        encoding="utf-8",
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/me"}), encoding="utf-8")
    found, notes = build_metadata(view_of(folder, mtp=False), file_type=1, counts=ParameterCounts(10, 10))
    everything = json.dumps([(k, kv.value) for k, kv in found.items()])
    assert not any(word in everything for word in ("/home", "./outputs", "/data"))
    assert found["general.base_model.count"].value == 1
    assert found["general.base_model.0.repo_url"].value == "https://huggingface.co/Qwen/Qwen2.5-7B"
    assert found["general.tags"].value == ("chat",)
    assert [note.split(":")[0] for note in notes] == [
        "README.md's base_model is a local path",
        "README.md's datasets is a local path",
        "README.md's tags name a local path",
        "config.json's _name_or_path is a local path",
        "general.description holds a path of some machine",
    ]


def test_counts_as_gguf_py() -> None:
    shapes = {"token_embd.weight": (100, 8), "blk.0.ffn_up_exps.weight": (4, 16, 8), "a_norm.weight": (8,)}
    assert ParameterCounts.of(shapes) == ParameterCounts(1320, 808, 128, 4)


@pytest.mark.toolchain
@pytest.mark.skipif(not toolchain.has_tree(), reason=toolchain.NO_TREE)
@pytest.mark.slow
def test_golden_is_what_the_tree_writes(tmp_path: Path) -> None:
    out = tmp_path / "metadata.json"
    script = Path(__file__).with_name("make_metadata_golden.py")
    env = {**os.environ, "QEXPORT_GOLDEN_OUT": str(out)}
    subprocess.run([sys.executable, str(script)], check=True, env=env, capture_output=True)
    assert json.loads(out.read_text(encoding="utf-8")) == golden()
