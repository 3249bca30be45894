"""FP8 folders: the documented formula, official names and shapes, everything else untouched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_layouts import one_by_one
from fp8_folders import TILE, config_of, dequantized, repaired, same, tensors_in, write_fp8
from zoo_types import Zoo, ZooCopy

from qexport.errors import InputError, UsageProblem
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import plan_fp8

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_5", {}),
    ("qwen3_5_moe", {}),
    ("qwen3_5_moe_122b", {}),
    ("qwen3_5_moe_text", {}),
    ("llama", {}),  # float16
    ("qwen2", {}),  # float32, biases
    ("gemma3", {"layers": 2}),
    ("qwen3_moe", {}),
]


def formula(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """scale = bf16(amax / 448), code = e4m3(x / scale), as docs/fp8.md says."""
    rows, columns = weight.shape
    tiles = weight.float().reshape(rows // TILE, TILE, columns // TILE, TILE)
    scales = (tiles.abs().amax((1, 3)) / 448).to(torch.bfloat16)
    scales[scales == 0] = 1
    wide = scales.float().repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
    return (weight.float() / wide).to(torch.float8_e4m3fn), scales


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_native_folder(zoo: Zoo, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    source = zoo(name, **options)
    plan = write_fp8(source, tmp_path / "out")
    before, after = one_by_one(tensors_in(source)), tensors_in(tmp_path / "out")
    count = 0
    for key, weight in before.items():
        scales = after.pop(f"{key}_scale_inv", None)
        stored = after.pop(key)
        if scales is None:
            assert same(stored, weight), key
            continue
        codes, expected = formula(weight)
        assert same(stored, codes), key
        assert same(scales, expected), key
        count += 1
    assert after == {}
    assert count == sum(entry["tensors"] for entry in plan.details["quantized"].values())
    assert count > 0
    stored_bytes = sum(
        tensor.nbytes
        for key, tensor in tensors_in(tmp_path / "out").items()
        if tensor.dtype == torch.float8_e4m3fn or key.endswith("_scale_inv")
    )
    assert stored_bytes == sum(entry["bytes"] for entry in plan.details["quantized"].values())


def test_official_form(zoo: Zoo, tmp_path: Path) -> None:
    source = zoo("qwen3_5_moe")
    write_fp8(source, tmp_path / "out")
    tensors, config = tensors_in(tmp_path / "out"), config_of(tmp_path / "out")
    expert = "model.language_model.layers.0.mlp.experts.3.up_proj.weight"
    assert tensors[expert].dtype == torch.float8_e4m3fn
    assert tensors[f"{expert}_scale_inv"].dtype == torch.bfloat16
    assert tensors[f"{expert}_scale_inv"].shape == (2, 2)
    assert tensors["mtp.layers.0.mlp.experts.0.gate_proj.weight"].dtype == torch.float8_e4m3fn
    assert tensors["mtp.layers.0.self_attn.q_proj.weight"].dtype == torch.float8_e4m3fn
    assert tensors["mtp.fc.weight"].dtype == torch.bfloat16
    assert tensors["model.language_model.layers.0.linear_attn.A_log"].dtype == torch.float32
    assert not [key for key in tensors if key.endswith(("gate_up_proj", "experts.down_proj"))]
    quantization = config.pop("quantization_config")
    listed = quantization.pop("modules_to_not_convert")
    assert quantization == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    assert "mtp.fc" in listed
    assert config == config_of(source)
    others = [path.name for path in source.iterdir() if path.suffix != ".safetensors"]
    for other in others:
        if other not in ("config.json", "model.safetensors.index.json"):
            assert (tmp_path / "out" / other).read_bytes() == (source / other).read_bytes()


def test_values_are_near(zoo: Zoo, tmp_path: Path) -> None:
    write_fp8(zoo("qwen3_5"), tmp_path / "out")
    before, after = tensors_in(zoo("qwen3_5")), dequantized(tmp_path / "out")
    assert before.keys() == after.keys()
    key = "model.language_model.layers.0.mlp.down_proj.weight"
    error = (after[key] - before[key].float()).norm() / before[key].float().norm()
    assert 0.01 < error < 0.04  # three bits of mantissa


def test_the_head_may_stay(zoo: Zoo, tmp_path: Path) -> None:
    source = zoo("qwen3_5_moe")
    plan = write_fp8(source, tmp_path / "out", mtp_bf16=True)
    tensors = tensors_in(tmp_path / "out")
    head = {key: tensor for key, tensor in tensors.items() if key.startswith("mtp.")}
    assert head
    assert {tensor.dtype for tensor in head.values()} == {torch.bfloat16}
    assert "mtp.layers.0.mlp.experts.3.down_proj.weight" in head
    listed = config_of(tmp_path / "out")["quantization_config"]["modules_to_not_convert"]
    assert {"mtp.fc", "mtp.layers.0.self_attn.o_proj", "mtp.layers.0.mlp.experts"} <= set(listed)
    assert any("MTP head keeps its dtype" in note for note in plan.notes)


@pytest.mark.parametrize("layout", ["native", "compressed-tensors"])
def test_no_head_none_declared(zoo: Zoo, tmp_path: Path, layout: str) -> None:
    plan = write_fp8(zoo("qwen3_5"), tmp_path / "out", mtp="drop", layout=layout)
    assert not [key for key in tensors_in(tmp_path / "out") if key.startswith("mtp.")]
    assert not config_of(tmp_path / "out")["text_config"].get("mtp_num_hidden_layers")
    assert not [name for name in plan.details["not_converted"] if "mtp" in name]
    assert plan.details["mtp"] == {"layers": 0, "origin": "dropped", "quantized": False}


def test_layouts_of_the_source_do_not_matter(zoo: Zoo, tmp_path: Path) -> None:
    """Fused or single experts, wrapper or flat: the same numbers come out."""
    write_fp8(zoo("qwen3_5_moe"), tmp_path / "one", mtp="drop")
    write_fp8(zoo("qwen3_5_moe_text"), tmp_path / "other")
    one, other = tensors_in(tmp_path / "one"), tensors_in(tmp_path / "other")
    renamed = {key.replace("model.language_model.", "model."): tensor for key, tensor in one.items()}
    differ = ("A_log", "linear_attn.norm.weight")  # float32 in the one, rounded in the other
    trunk = {k: t for k, t in renamed.items() if "visual" not in k and not k.endswith(differ)}
    assert trunk.keys() == {key for key in other if not key.endswith(differ)}
    assert [key for key, tensor in trunk.items() if not same(tensor, other[key])] == []


def test_odd_sizes_stay_and_are_said(zoo: Zoo, tmp_path: Path) -> None:
    plan = write_fp8(zoo("llama3"), tmp_path / "out")
    attention = {"attn_q", "attn_k", "attn_v"}
    assert attention.isdisjoint(plan.details["quantized"])  # k and v have 64 rows, q is fused with them
    assert "attn_output" in plan.details["quantized"]
    (note,) = plan.notes
    assert note.startswith("not FP8, and listed: attn_q, attn_k, attn_v (attn_")
    assert "64 by 256" in note
    listed = config_of(tmp_path / "out")["quantization_config"]["modules_to_not_convert"]
    assert {f"model.layers.1.self_attn.{part}_proj" for part in "qkv"} <= set(listed)


@pytest.mark.parametrize("name", ["smollm", "qwen3_5_tied"])
def test_nothing_to_quantize_is_an_error(zoo: Zoo, name: str) -> None:
    with pytest.raises(InputError, match=r"no matrix of .* can become FP8: .* by ") as caught:
        plan_fp8(repaired(zoo(name)))
    assert caught.value.hint is not None
    assert "128" in caught.value.hint


def test_an_unknown_layout() -> None:
    with pytest.raises(UsageProblem, match="no FP8 layout 'gptq'"):
        Fp8Options(layout="gptq")


def test_shards(zoo: Zoo, tmp_path: Path) -> None:
    plan = write_fp8(zoo("qwen3_5_moe"), tmp_path / "out", max_shard=1 << 20)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = index["weight_map"]
    assert len(set(files.values())) > 3
    for key, file in files.items():
        if key.endswith("_scale_inv"):
            assert files[key.removesuffix("_scale_inv")] == file
    assert index["metadata"]["total_parameters"] == repaired(zoo("qwen3_5_moe")).view().parameters
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) == plan.size


def test_weights_that_are_not_finite(zoo_copy: ZooCopy, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = zoo_copy("llama", shards=1)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][130, 7] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: 1 value"):
        write_fp8(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
