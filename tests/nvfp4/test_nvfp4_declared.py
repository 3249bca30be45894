"""What vLLM and SGLang conclude from the config is what the files hold, for every module that they build."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nvfp4_folders import plan
from nvfp4_runtime_rules import (
    Module,
    ct_group,
    ct_ignores,
    mixed_algo,
    runtime_modules,
    sglang_excludes,
    vllm_excludes,
    vllm_path,
)
from zoo_types import Zoo

from qexport.formats.plan import ArtifactPlan

MODELS = {
    "dense": ("qwen3_5", {}),
    "MoE": ("qwen3_5_moe", {}),
    "text": ("qwen3_5_text", {"mtp": True}),
    "MoE text": ("qwen3_5_moe_text", {}),
    "llama": ("llama", {}),
    "qwen3 MoE": ("qwen3_moe", {}),
}
LARGE = {"hidden": 256, "intermediate": 256, "layers": 4}  # sides that divide into tiles
SCOPES = ["mlp", "mlp+attention", "all-linear", r"layers\.1\.mlp\.", r"(shared_expert\.)?down_proj$|experts"]


def headers(made: ArtifactPlan) -> dict[str, str]:
    """dtype of every stored tensor."""
    found: dict[str, str] = {}
    for file in made.files:
        if file.name.endswith(".safetensors"):
            entries = json.loads(file.header[8 : 8 + int.from_bytes(file.header[:8], "little")])
            found |= {name: entry["dtype"] for name, entry in entries.items() if name != "__metadata__"}
    return found


def small(made: ArtifactPlan, name: str) -> dict[str, Any]:
    return json.loads(next(file.header for file in made.files if file.name == name))


def built(made: ArtifactPlan, *, vllm: bool) -> Iterator[tuple[Module, str | None]]:
    """Every linear layer of a runtime, and how its parts are stored: all alike, or the test fails."""
    dtypes = headers(made)
    stored = {
        name.replace(".weight_packed", ".weight"): {"U8": "W4A16_NVFP4", "F8_E4M3": "FP8"}.get(dtype)
        for name, dtype in dtypes.items()
        if name.endswith((".weight", ".weight_packed"))
    }
    wrapper = any("language_model" in name for name in stored)
    for module in runtime_modules(stored, vllm_path if vllm and wrapper else str):
        (kind,) = {stored[f"{part}.weight"] for part in module.parts}
        yield module, kind


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scope", SCOPES)
def test_modelopt(zoo: Zoo, model: str, scope: str) -> None:
    name, options = MODELS[model]
    made = plan(zoo(name, **options), scope=scope)
    listed = small(made, "config.json")["quantization_config"]["ignore"]
    text_only = not any("language_model" in entry for entry in listed)
    seen = {True: 0, False: 0}
    for module, kind in built(made, vllm=True):
        # A text-only class drops entries that begin with "mtp.".
        known = [entry for entry in listed if not (text_only and entry.startswith("mtp."))]
        assert vllm_excludes(module.path, known) == (kind is None), module.path
        seen[kind is None] += 1
    assert seen[True]
    assert seen[False]
    for module, kind in built(made, vllm=False):
        if not module.path.startswith(("model.visual", "mtp")):  # built without quantization
            assert sglang_excludes(module.path, listed) == (kind is None), module.path


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scope", SCOPES)
def test_compressed_tensors(zoo: Zoo, model: str, scope: str) -> None:
    name, options = MODELS[model]
    made = plan(zoo(name, **options), scope=scope, layout="compressed-tensors")
    listed = small(made, "config.json")["quantization_config"]["ignore"]
    assert all(entry.startswith("re:.*") for entry in listed)
    for vllm in (True, False):
        for module, kind in built(made, vllm=vllm):
            assert ct_ignores(module.path, listed, suffixes=not vllm) == (kind is None), module.path


@pytest.mark.parametrize("model", MODELS)
def test_mixed(zoo: Zoo, model: str) -> None:
    name, options = MODELS[model]
    made = plan(zoo(name, **options), scope="nvidia")
    declared = small(made, "config.json")["quantization_config"]
    layers, kinds = declared["quantized_layers"], set()
    for vllm in (True, False):
        for module, kind in built(made, vllm=vllm):
            excluded = vllm_excludes(module.path, declared["ignore"])
            assert excluded == module.path.startswith("mtp")
            assert (None if excluded else mixed_algo(module.path, layers)) == kind, module.path
            kinds.add(kind)
    assert {"W4A16_NVFP4", "FP8"} <= kinds
    assert all(not key.startswith("mtp") for key in layers)
    groups = declared["config_groups"].values()
    assert sorted(target for group in groups for target in group["targets"]) == sorted(layers)


def divided(zoo: Zoo, tmp_path: Path, model: str, layout: str) -> ArtifactPlan:
    """Layer 0 plain, layer 1 all FP8, the others' MLPs NVFP4 (not layer 2's experts), their attention FP8."""
    name, options = MODELS[model]
    source = zoo(name, **options, **LARGE)
    assignment = plan(source, scope="all-linear", layout=layout).assignment
    assert assignment is not None

    def word(tensor: str) -> str:
        layer = tensor.partition(".layers.")[2].partition(".")[0]
        if layer in ("", "0"):
            return "plain"
        if layer == "1" or "self_attn" in tensor:
            return "F8_E4M3"
        return "plain" if ".experts." in tensor and layer == "2" else "NVFP4"

    types = {tensor: word(tensor) for tensor in assignment.types}
    path = tmp_path / "types.json"
    path.write_text(json.dumps(assignment.to_json() | {"types": types}))
    return plan(source, layout=layout, types_from=path)


@pytest.mark.parametrize("model", MODELS)
def test_mixed_by_layer(zoo: Zoo, tmp_path: Path, model: str) -> None:
    made = divided(zoo, tmp_path, model, "modelopt")
    declared, kinds = small(made, "config.json")["quantization_config"], set()
    for vllm in (True, False):
        for module, kind in built(made, vllm=vllm):
            if vllm:
                excluded = vllm_excludes(module.path, declared["ignore"])
            else:
                excluded = sglang_excludes(module.path, declared["ignore"])
            found = None if excluded else mixed_algo(module.path, declared["quantized_layers"])
            assert found == kind, module.path
            kinds.add(kind)
    assert kinds == {None, "W4A16_NVFP4", "FP8"}


@pytest.mark.parametrize("model", MODELS)
def test_mixed_in_compressed_tensors(zoo: Zoo, tmp_path: Path, model: str) -> None:
    made = divided(zoo, tmp_path, model, "compressed-tensors")
    declared, kinds = small(made, "config.json")["quantization_config"], set()
    assert declared["format"] == "mixed-precision"
    for vllm in (True, False):
        for module, kind in built(made, vllm=vllm):
            found = None
            if not ct_ignores(module.path, declared["ignore"], suffixes=not vllm):
                found = ct_group(module.path, declared["config_groups"], sglang=not vllm)
            assert found == {"W4A16_NVFP4": "NVFP4A16", "FP8": "FP8_BLOCK"}.get(kind or ""), module.path
            kinds.add(kind)
    assert kinds == {None, "W4A16_NVFP4", "FP8"}


def test_one_scheme_takes_what_is_not_ignored(zoo: Zoo, tmp_path: Path) -> None:
    """All FP8: no mixture, and what llm-compressor calls it."""
    source = zoo("qwen3_5", **LARGE)
    assignment = plan(source, scope="all-linear").assignment
    assert assignment is not None
    types = dict.fromkeys((name for name in assignment.types if name != "lm_head.weight"), "F8_E4M3")
    path = tmp_path / "types.json"
    path.write_text(json.dumps(assignment.to_json() | {"types": types}))
    declared = small(plan(source, layout="compressed-tensors", types_from=path), "config.json")
    found = declared["quantization_config"]
    assert found["format"] == "float-quantized"
    assert [group["targets"] for group in found["config_groups"].values()] == [["Linear"]]


@pytest.mark.parametrize("scope", ["mlp", "nvidia"])
@pytest.mark.parametrize("model", MODELS)
def test_both_files_agree(zoo: Zoo, model: str, scope: str) -> None:
    name, options = MODELS[model]
    made = plan(zoo(name, **options), scope=scope)
    config = small(made, "config.json")["quantization_config"]
    whole = small(made, "hf_quant_config.json")
    inner = whole["quantization"]
    assert config["producer"] == whole["producer"]
    assert whole["producer"]["name"] == "modelopt"  # vLLM and SGLang ask for it
    assert "qexport" in whole["producer"]["version"]
    assert config["ignore"] == inner["exclude_modules"]
    assert config["quant_algo"] == inner["quant_algo"]
    assert inner["kv_cache_quant_algo"] is None  # vLLM wants the key
    if scope == "mlp":
        assert inner["group_size"] == config["config_groups"]["group_0"]["weights"]["group_size"] == 16
    else:
        assert config["quantized_layers"] == inner["quantized_layers"]
    assert config["quant_method"] == "modelopt"


def test_a_dense_model_lists_no_router(zoo: Zoo) -> None:
    """vLLM would find `mlp.gate` inside `mlp.gate_up_proj`."""
    listed = small(plan(zoo("qwen3_5")), "config.json")["quantization_config"]["ignore"]
    assert not [entry for entry in listed if entry.endswith("mlp.gate")]
    assert vllm_excludes(
        "language_model.model.layers.0.mlp.gate_up_proj", [*listed, "model.language_model.layers.0.mlp.gate"]
    )
    assert listed[-3:] == ["model.visual*", "mtp.layers.0*", "mtp*"]
    dropped = small(plan(zoo("qwen3_5"), mtp="drop"), "config.json")
    assert dropped["quantization_config"]["ignore"][-1] == "model.visual*"
    assert not dropped["text_config"].get("mtp_num_hidden_layers")


def test_other_towers(zoo: Zoo) -> None:
    """Gemma's names: the head inside `language_model.`, the tower without a prefix."""
    made = plan(zoo("gemma3"))
    listed = small(made, "config.json")["quantization_config"]["ignore"]
    assert listed[:2] == ["lm_head", "model.embed_tokens"]
    assert "*" not in "".join(listed)
