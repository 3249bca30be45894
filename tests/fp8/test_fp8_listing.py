"""Quantized or listed, never both and never neither: as vLLM, SGLang, transformers read the lists."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fp8_folders import repaired
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_rules import FUSED, runtime_modules, sglang_skips, vllm_skips
from zoo_types import Zoo

from qexport.errors import InputError
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.plan import ArtifactPlan

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_5", {}),
    ("qwen3_5", {"intermediate": 320}),
    ("qwen3_5", {"form": "flat", "vision": False}),
    ("qwen3_5_moe", {}),
    ("qwen3_5_moe", {"intermediate": 192}),
    ("qwen3_5_moe_122b", {}),
    ("qwen3_5_moe_text", {}),
    ("llama", {}),
    ("llama3", {}),  # k and v have 64 rows
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("qwen3_moe", {}),
    ("gemma3", {}),
]


def states(plan: ArtifactPlan) -> dict[str, bool]:
    """For each stored matrix, whether it is FP8."""
    index = next((f for f in plan.files if f.name.endswith(".safetensors")), None)
    assert index is not None
    entries = json.loads(index.header[8:])
    return {
        name: entry["dtype"] == "F8_E4M3"
        for name, entry in entries.items()
        if name.endswith(".weight") and len(entry["shape"]) > 1
    }


def check_native(plan: ArtifactPlan) -> None:
    listed, fp8 = plan.details["not_converted"], states(plan)
    assert len(listed) == len(set(listed))
    modules = runtime_modules(fp8)
    assert modules
    for module, weights in modules.items():
        (quantized,) = {fp8[weight] for weight in weights}
        assert vllm_skips(module, listed) is not quantized, module
        assert sglang_skips(module, listed) is not quantized, module
    for name, quantized in fp8.items():  # transformers: regexes from the start
        module = name.removesuffix(".weight")
        fused = re.sub(r"\.experts\.\d+\..*", ".experts", module)
        if quantized:
            assert not any(re.match(entry, fused) or fused.endswith(entry) for entry in listed), name


@pytest.mark.parametrize("mtp_bf16", [False, True])
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_native(zoo: Zoo, name: str, options: dict[str, Any], mtp_bf16: bool) -> None:
    source = repaired(zoo(name, **options), mtp="auto")
    check_native(plan_fp8(source, Fp8Options(mtp_bf16=mtp_bf16)))


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_compressed_tensors(zoo: Zoo, name: str, options: dict[str, Any]) -> None:
    plan = plan_fp8(repaired(zoo(name, **options)), Fp8Options(layout="compressed-tensors"))
    ignore = plan.details["not_converted"]
    assert all(entry.startswith("re:.*") for entry in ignore)
    patterns = [re.compile(entry.removeprefix("re:")) for entry in ignore]
    for name, quantized in states(plan).items():
        module = name.removesuffix(".weight")
        # and the prefix that vLLM has instead
        for spelled in (module, module.replace("model.language_model", "language_model.model")):
            assert any(pattern.match(spelled) for pattern in patterns) is not quantized, spelled


def test_full_paths_of_the_published_form(zoo: Zoo) -> None:
    plan = plan_fp8(repaired(zoo("qwen3_5_moe")))
    listed = plan.details["not_converted"]
    assert listed[:2] == ["lm_head", "model.language_model.embed_tokens"]
    assert "mtp.fc" in listed
    assert "model.visual.blocks.1.attn.qkv" in listed
    assert listed[-1] == "model.visual"
    assert [n for n in listed if n.startswith("model.language_model.layers.0.")] == [
        f"model.language_model.layers.0.{module}"
        for module in (
            "linear_attn.in_proj_a",
            "linear_attn.in_proj_ba",
            "linear_attn.in_proj_b",
            "linear_attn.conv1d",
            "mlp.gate",
            "mlp.shared_expert_gate",
        )
    ]


def test_the_whole_head_is_listed(zoo: Zoo) -> None:
    plan = plan_fp8(repaired(zoo("qwen3_5_moe_122b")), Fp8Options(mtp_bf16=True))
    listed = plan.details["not_converted"]
    assert "mtp.layers.0.mlp.experts" in listed
    assert vllm_skips("mtp.layers.0.mlp.experts", listed)
    assert not vllm_skips("model.language_model.layers.0.mlp.experts", listed)
    assert plan.details["mtp"]["quantized"] is False


def test_a_dense_model_has_no_router_to_list(zoo: Zoo) -> None:
    for layout in ("native", "compressed-tensors"):
        plan = plan_fp8(repaired(zoo("qwen3_5")), Fp8Options(layout=layout))
        assert not [name for name in plan.details["not_converted"] if re.search(r"mlp\\?\.gate", name)]


@given(
    hidden=st.sampled_from([128, 192, 256]),
    intermediate=st.sampled_from([64, 128, 200, 384]),
    heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([64, 128]),
    key_heads=st.sampled_from([1, 2]),
    value_heads=st.sampled_from([2, 4]),
    experts=st.sampled_from([0, 2]),
    mtp_bf16=st.booleans(),
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(zoo: Zoo, experts: int, mtp_bf16: bool, **sizes: int) -> None:
    fixed = {"layers": 4, "kv_heads": 1, "experts": experts, "experts_per_token": 1, "vision": False}
    source = repaired(zoo("qwen3_5", **fixed, **sizes, form="wrapper"))
    options = Fp8Options(mtp_bf16=mtp_bf16)
    if sizes["hidden"] % 128:
        with pytest.raises(InputError, match="can become FP8"):
            plan_fp8(source, options)
        return
    plan = plan_fp8(source, options)  # linear_attn.out_proj always fits
    check_native(plan)
    for tensor in plan.tensors:
        if len(tensor.streams) > 1:
            assert not any(size % 128 for size in tensor.shape[-2:])


def test_parts_of_fused_matrices_have_to_fit(zoo: Zoo) -> None:
    # in_proj_qkv has 2 * 64 + 128 rows: a multiple of 128, but vLLM merges 64, 64, 128 and z
    plan = plan_fp8(repaired(zoo("qwen3_5", key_heads=1, value_heads=2)))
    assert "linear_qkv" not in plan.details["quantized"]
    assert "linear_z" not in plan.details["quantized"]
    assert "linear_out" in plan.details["quantized"]
    assert any("linear_qkv, linear_z" in note and "64 rows" in note for note in plan.notes)
    layer = "model.language_model.layers.0.linear_attn"
    expected = {f"{layer}.{part}" for part in ("in_proj_qkvz", *FUSED["in_proj_qkvz"])}
    assert expected <= set(plan.details["not_converted"])
