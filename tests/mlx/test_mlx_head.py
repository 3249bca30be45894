"""The MTP head in its four layouts: names, shapes, one added once, declared where it is and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlx_bench import config_of, differences, repaired, tensors_of, written
from safetensors import safe_open
from zoo_types import Zoo

from qexport.codecs.mlx_affine import dequantize
from qexport.formats.mlx.options import MlxOptions

NORMS = {
    "norm.weight",
    "pre_fc_norm_embedding.weight",
    "pre_fc_norm_hidden.weight",
    "layers.0.input_layernorm.weight",
    "layers.0.post_attention_layernorm.weight",
    "layers.0.self_attn.q_norm.weight",
    "layers.0.self_attn.k_norm.weight",
}
PROJECTIONS = {f"layers.0.self_attn.{p}_proj.weight" for p in "qkvo"}
DENSE = {f"layers.0.mlp.{p}_proj.weight" for p in ("gate", "up", "down")}
EXPERTS = {f"layers.0.mlp.switch_mlp.{p}_proj.weight" for p in ("gate", "up", "down")}
SHARED = {f"layers.0.mlp.shared_expert.{p}_proj.weight" for p in ("gate", "up", "down")}
ROUTERS = {"layers.0.mlp.gate.weight", "layers.0.mlp.shared_expert_gate.weight"}


def expected(source: Path) -> dict[str, torch.Tensor]:
    """The head as mlx-vlm's loader makes it of the checkpoint's ``mtp.*`` tensors."""
    raw = {name: t for name, t in tensors_of(source).items() if name.startswith("mtp.")}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in raw.items():
        bare = name.removeprefix("mtp.")
        if bare.endswith("experts.gate_up_proj"):
            half = tensor.shape[1] // 2
            found["layers.0.mlp.switch_mlp.gate_proj.weight"] = tensor[:, :half]
            found["layers.0.mlp.switch_mlp.up_proj.weight"] = tensor[:, half:]
        elif bare.endswith("experts.down_proj"):
            found["layers.0.mlp.switch_mlp.down_proj.weight"] = tensor
        else:
            found[bare] = tensor + 1 if bare in NORMS else tensor
    return found


@pytest.mark.parametrize(("name", "count"), [("qwen3_5", 15), ("qwen3_5_moe", 20)])
def test_drafter(name: str, count: int, zoo: Zoo, tmp_path: Path) -> None:
    source = zoo(name)
    (trunk, drafter), _ = written(repaired(source), MlxOptions(bits=4), tmp_path / "out")
    head = tensors_of(drafter)
    assert set(head) == NORMS | PROJECTIONS | {"fc.weight"} | (
        DENSE if count == 15 else EXPERTS | SHARED | ROUTERS
    )
    assert len(head) == count
    assert differences(head, expected(source)) == []
    config = config_of(drafter)
    assert config["model_type"] == "qwen3_5_mtp"
    assert config["block_size"] == 3
    assert config["text_config"]["mtp_num_hidden_layers"] == 1
    assert config["text_config"]["hidden_size"] == 256
    assert ("moe" in config["text_config"]["model_type"]) == (count == 20)
    assert "quantization" not in config
    # The trunk has none, and says so.
    assert config_of(trunk)["text_config"]["mtp_num_hidden_layers"] == 0
    assert not [name for name in tensors_of(trunk) if "mtp" in name]


def test_experts_one_by_one_make_the_same_head(zoo: Zoo, tmp_path: Path) -> None:
    heads = []
    for name in ("qwen3_5_moe", "qwen3_5_moe_122b"):
        (_, drafter), _ = written(repaired(zoo(name)), MlxOptions(), tmp_path / name)
        heads.append(tensors_of(drafter))
    assert differences(*heads) == []


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_sidecars(name: str, zoo: Zoo, tmp_path: Path) -> None:
    source = zoo(name)
    options = MlxOptions(bits=4, mtp=("mtplx", "vllm-mlx", "drafter"))
    (trunk, drafter), plans = written(repaired(source), options, tmp_path / "out")
    wanted = {f"mtp.{key}": value for key, value in expected(source).items()}
    for file in ("mtp.safetensors", "mtp/weights.safetensors"):
        assert differences(tensors_of(trunk, file), wanted) == []
    assert differences(tensors_of(drafter), expected(source)) == []
    contract = json.loads((trunk / "mtplx_runtime.json").read_text())
    assert contract["arch_id"] == "qwen3-next-mtp"
    assert contract["mtp_depth_max"] == 1
    assert contract["mtp_norm_layout"] == "mlx_multiplier"
    manifest = json.loads((trunk / "mtp" / "manifest.json").read_text())
    assert manifest["artifact_schema_version"] == 1
    assert manifest["rmsnorm_weight_format"] == "mlx_gamma"
    assert manifest["weight_keys"] == sorted(wanted)
    config = config_of(trunk)
    assert config["mlx_lm_extra_tensors"] == {"mtp_file": "mtp.safetensors"}
    assert "mtplx_mtp_quantization" not in config
    assert config["num_nextn_predict_layers"] == config["text_config"]["num_nextn_predict_layers"] == 1
    assert config["text_config"]["mtp_num_hidden_layers"] == 1
    # No version of mlx-lm reads them: its glob is model*.safetensors, and the index does not know them.
    assert not [key for key in tensors_of(trunk) if "mtp" in key]
    index = json.loads((trunk / "model.safetensors.index.json").read_text())
    assert not [key for key in index["weight_map"] if "mtp" in key]
    assert plans[0].details["mtp_layouts"] == ["mtplx", "vllm-mlx", "drafter"]


def test_embedded(zoo: Zoo, tmp_path: Path) -> None:
    source = zoo("qwen3_5")
    options = MlxOptions(bits=4, mtp=("embedded",), mtp_bits=8)
    (trunk,), (plan,) = written(repaired(source), options, tmp_path / "out")
    inside = {name for name in tensors_of(trunk) if ".mtp." in name}
    assert len(inside) == 15 + 2 * 7
    assert all(name.startswith("language_model.mtp.") for name in inside)
    config = config_of(trunk)
    assert config["text_config"]["mtp_num_hidden_layers"] == 1
    assert config["quantization"]["language_model.mtp.layers.0.self_attn.q_proj"]["bits"] == 8
    assert "language_model.mtp.fc" not in config["quantization"]
    assert any("0.31.3" in note for note in plan.notes)


@pytest.mark.parametrize(("name", "quantized"), [("qwen3_5", PROJECTIONS | DENSE), ("qwen3_5_moe", None)])
def test_quantized_head(name: str, quantized: set[str] | None, zoo: Zoo, tmp_path: Path) -> None:
    source = zoo(name)
    options = MlxOptions(bits=4, mtp=("drafter", "mtplx", "vllm-mlx"), mtp_bits=8)
    (trunk, drafter), plans = written(repaired(source), options, tmp_path / "out")
    head, wanted = tensors_of(drafter), expected(source)
    stored = {key.replace(".scales", ".weight") for key in head if key.endswith(".scales")}
    assert stored == (quantized or PROJECTIONS | EXPERTS | SHARED)
    for key in stored:
        parts = [head[key.replace(".weight", f".{part}")].flatten(0, -2) for part in ("scales", "biases")]
        packed = head[key].flatten(0, -2).view(torch.uint8).numpy()
        made = dequantize(packed, *parts, 8).view(wanted[key].shape).float()
        assert (made - wanted[key].float()).abs().max() < 0.02 * wanted[key].abs().max()
    for key in NORMS | {"fc.weight"}:
        assert torch.equal(head[key], wanted[key])
    assert config_of(drafter)["quantization"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    block = config_of(trunk)["mtplx_mtp_quantization"]
    assert (block["prequantized"], block["bits"], block["policy"]) == (True, 8, "cyankiwi")
    assert set(tensors_of(trunk, "mtp.safetensors")) == {f"mtp.{key}" for key in head}
    if quantized:
        assert len(head) == 29  # the count that readers check for a dense head with its fc left alone
    # vllm-mlx would dequantize with the trunk's settings.
    assert (
        differences(
            tensors_of(trunk, "mtp/weights.safetensors"),
            {f"mtp.{key}": value for key, value in wanted.items()},
        )
        == []
    )
    assert any("vllm-mlx" in note for note in plans[0].notes)


@pytest.mark.parametrize(
    ("name", "mtp"),
    [("qwen3_5", ("none",)), ("qwen3_5_text", ("drafter", "mtplx", "vllm-mlx")), ("llama", ("drafter",))],
)
def test_no_head_no_declaration(name: str, mtp: tuple[Any, ...], zoo: Zoo, tmp_path: Path) -> None:
    folders, _ = written(repaired(zoo(name)), MlxOptions(mtp=mtp), tmp_path / "out")
    assert len(folders) == 1
    config = config_of(folders[0])
    text = config.get("text_config", config)
    assert not text.get("mtp_num_hidden_layers")
    assert not {"num_nextn_predict_layers", "mlx_lm_extra_tensors"} & {*config, *text}
    assert not [p for p in folders[0].rglob("*") if "mtp" in p.name]


def test_files_are_mlx(zoo: Zoo, tmp_path: Path) -> None:
    options = MlxOptions(mtp=("drafter", "mtplx", "vllm-mlx"))
    folders, _ = written(repaired(zoo("qwen3_5")), options, tmp_path / "out")
    files = [file for folder in folders for file in folder.rglob("*.safetensors")]
    assert len(files) == 4
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "mlx"}
