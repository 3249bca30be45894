"""The zoo itself: the same bytes everywhere, readable, and written as transformers writes it."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from oracle import make_golden, toolchain
from oracle.summary import compare, source_digest, summarize
from quirks_planted import BAD, BASE, PLANTS, tensors_in
from safetensors import SafetensorError
from zoo import ZOO, build, options_of

if TYPE_CHECKING:
    from pathlib import Path

    from zoo_types import Zoo, ZooCopy

SAVED = [name for name, entry in ZOO.items() if entry.options.style == "saved"]


@pytest.mark.parametrize("name", ZOO)
def test_same_bytes_as_when_the_goldens_were_made(zoo: Zoo, name: str) -> None:
    assert source_digest(zoo(name)) == make_golden.load(name, "BF16")["source"]


@pytest.mark.parametrize("name", ZOO)
def test_every_golden_is_there_and_of_one_source(name: str) -> None:
    sources = {make_golden.load(name, variant)["source"] for variant in make_golden.variants_of(name)}
    assert len(sources) == 1
    assert {p.stem for p in (make_golden.GOLDEN / name).iterdir()} == set(make_golden.variants_of(name))


def test_seed_changes_weights_and_nothing_else(tmp_path: Path) -> None:
    one, two = build("llama", tmp_path / "1"), build("llama", tmp_path / "2", seed=1)
    a, b = tensors_in(one), tensors_in(two)
    assert [(n, t.shape, t.dtype) for n, t in a.items()] == [(n, t.shape, t.dtype) for n, t in b.items()]
    assert not any(a[n].equal(b[n]) for n in a)
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()


def test_forms_of_a_model_hold_the_same_numbers(zoo: Zoo) -> None:
    wrapper = tensors_in(zoo("qwen3_5", float32_ssm=False))
    for name, tensor in tensors_in(zoo("qwen3_5_text")).items():
        other = name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)
        assert tensor.equal(wrapper[other])


def test_fused_and_single_experts_hold_the_same_numbers(zoo: Zoo) -> None:
    fused = tensors_in(zoo("qwen3_5_moe"))
    single = tensors_in(zoo("qwen3_5_moe_text"))
    both = fused["model.language_model.layers.2.mlp.experts.gate_up_proj"][3]
    assert both[:256].equal(single["model.layers.2.mlp.experts.3.gate_proj.weight"])
    assert both[256:].equal(single["model.layers.2.mlp.experts.3.up_proj.weight"])


@pytest.mark.parametrize(("name", "count"), [("qwen3_5", 15), ("qwen3_5_moe", 19), ("qwen3_5_moe_122b", 29)])
def test_mtp_heads_have_the_published_number_of_tensors(zoo: Zoo, name: str, count: int) -> None:
    assert sum(n.startswith("mtp.") for n in tensors_in(zoo(name))) == count


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="there are qwen3_5, "):
        options_of("qwen9")
    with pytest.raises(ValueError, match="no zoo option colour; there are "):
        options_of("qwen3_5", colour="red")


@pytest.mark.parametrize("name", PLANTS)
def test_plants_change_something(zoo: Zoo, zoo_copy: ZooCopy, name: str) -> None:
    folder = zoo_copy(BASE[name])
    PLANTS[name](folder)
    assert source_digest(folder) != source_digest(zoo(BASE[name]))
    if name not in BAD:
        assert tensors_in(folder)


def test_broken_files_are_broken(zoo_copy: ZooCopy) -> None:
    for name in ("shard_truncated", "header_overlap", "header_absurd_length", "header_wrong_size"):
        folder = zoo_copy(BASE[name])
        PLANTS[name](folder)
        with pytest.raises(SafetensorError):
            tensors_in(folder)
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_transformers_loads_it_and_saves_it_alike(zoo: Zoo, tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.AutoTokenizer.from_pretrained(zoo(name))
        # It has no class for the language model of Qwen3-VL alone.
        causal = options_of(name).family != "qwen3_vl"
        auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForImageTextToText
        model, info = auto.from_pretrained(zoo(name), dtype="auto", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
        if name not in SAVED:
            return
        model.save_pretrained(tmp_path)
    ours, theirs = tensors_in(zoo(name)), tensors_in(tmp_path)
    assert ours.keys() == theirs.keys()
    assert all(ours[n].dtype == theirs[n].dtype and ours[n].equal(theirs[n]) for n in ours)
    for file in ("config.json", "generation_config.json"):
        # The version is the only word that may change when transformers does.
        mine, other = (json.loads((f / file).read_text(encoding="utf-8")) for f in (zoo(name), tmp_path))
        assert {**mine, "transformers_version": ""} == {**other, "transformers_version": ""}


def _tiny_gguf(path: Path, *, name: str = "a.weight", value: float = 1.0, count: int = 2) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(count)
    writer.add_tensor(name, np.full((2, 32), value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_compare_says_what_differs(tmp_path: Path) -> None:
    golden = summarize(_tiny_gguf(tmp_path / "golden"))
    assert compare(_tiny_gguf(tmp_path / "same"), golden) == []
    assert compare(_tiny_gguf(tmp_path / "count", count=3), golden) == [
        "key llama.block_count is UINT32 3; the toolchain writes UINT32 2"
    ]
    assert compare(_tiny_gguf(tmp_path / "count", count=3), golden, ignore_kv={"llama.block_count"}) == []
    (found,) = compare(_tiny_gguf(tmp_path / "value", value=2.0), golden)
    assert found.startswith("tensor a.weight: bytes hash is ")
    assert compare(_tiny_gguf(tmp_path / "name", name="b.weight"), golden) == [
        "tensor a.weight is missing",
        "tensor b.weight is ours alone",
    ]


@pytest.mark.toolchain
@pytest.mark.skipif(not toolchain.available(), reason=toolchain.NEITHER)
@pytest.mark.parametrize("name", ["llama3", "gemma3"])
def test_goldens_are_what_the_toolchain_writes(zoo: Zoo, tmp_path: Path, name: str) -> None:
    entry = ZOO[name]
    plain = toolchain.convert(
        zoo(name), tmp_path / "plain.gguf", "bf16", pre=entry.pre, flags=entry.convert_flags
    )
    assert compare(plain, make_golden.load(name, "BF16")) == []
    toolchain.quantize(plain, tmp_path / "small.gguf", "Q4_K_M")
    assert compare(tmp_path / "small.gguf", make_golden.load(name, "Q4_K_M")) == []
