"""Plans of MLX folders without MLX: names, sizes, configs, notes, refusals, importance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlx_bench import config_of, repaired, tensors_of, written
from zoo_types import Zoo, ZooCopy

from qexport.codecs.contract import Matrices, MlxAffine
from qexport.codecs.engines import encode_rows
from qexport.codecs.mlx_affine import dequantize
from qexport.errors import InputError, UsageProblem
from qexport.evidence.imatrix_file import ImportanceMatrix
from qexport.evidence.store import Kind
from qexport.families.roles import Block, Role
from qexport.formats.gguf.importance import gguf_importance, uncollected
from qexport.formats.mlx.config import trunk_config
from qexport.formats.mlx.dialect import dialect_of
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.onepass.rows import arranged_rows


def test_sizes_are_exact_and_the_order_that_of_the_pass(zoo: Zoo, tmp_path: Path) -> None:
    folders, plans = written(repaired(zoo("qwen3_5_moe")), MlxOptions(bits=6), tmp_path / "out")
    assert [plan.kind for plan in plans] == ["mlx", "mlx-drafter"]
    assert [plan.label for plan in plans] == ["6bit", "6bit-MTP"]
    for folder, plan in zip(folders, plans, strict=True):
        assert {f.name: f.size for f in plan.files} == {p.name: p.stat().st_size for p in folder.iterdir()}
        first = [t.streams[0][0].offset for t in plan.tensors if t.nbytes % 8 == 0]
        assert first == sorted(first)
    model = [file for file in plans[0].files if file.name == "model.safetensors"]
    assert json.loads(model[0].header[8:])["__metadata__"] == {"format": "mlx"}
    assert plans[0].details["tensor_types"]["6-bit g64"] == 45
    assert plans[0].details["tensor_types"]["8-bit g64"] == 8  # the gates of four layers


def test_small_files_are_the_checkpoints_own(zoo: Zoo, tmp_path: Path) -> None:
    source = zoo("qwen3_5")
    (folder, drafter), _ = written(repaired(source), MlxOptions(), tmp_path / "out")
    processors = ("preprocessor_config.json", "video_preprocessor_config.json")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", *processors):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert (drafter / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert not (drafter / "generation_config.json").exists()
    (blind, _), _ = written(repaired(source), MlxOptions(text_only=True), tmp_path / "text")
    for folder in (drafter, blind):
        assert not [name for name in processors if (folder / name).exists()]


def test_shards(zoo: Zoo, tmp_path: Path) -> None:
    model = repaired(zoo("llama"))
    (whole,), _ = written(model, MlxOptions(bits=4), tmp_path / "one")
    (folder,), _ = written(model, MlxOptions(bits=4, max_shard_size=200_000), tmp_path / "many")
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    one, many = tensors_of(whole), tensors_of(folder)
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(many)


def test_config_says_what_mlx_lm_would_guess_wrongly(zoo: Zoo, tmp_path: Path) -> None:
    (folder,), _ = written(repaired(zoo("llama3")), MlxOptions(), tmp_path / "llama")
    config = config_of(folder)
    assert config["rope_theta"] == 500000.0  # rope_parameters alone: mlx-lm's Llama takes 10000
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert config["tie_word_embeddings"] is True
    (folder,), _ = written(repaired(zoo("qwen3_moe", style="saved")), MlxOptions(), tmp_path / "moe")
    config = config_of(folder)
    assert config["num_experts"] == config["num_local_experts"] == 8
    (folder,), _ = written(repaired(zoo("qwen3_5_text")), MlxOptions(), tmp_path / "text")
    config = config_of(folder)
    assert config["model_type"] == "qwen3_5"  # qwen3_5_text: "not supported"
    assert config["text_config"]["model_type"] == "qwen3_5_text"
    assert config["text_config"]["full_attention_interval"] == 4


def test_layer_types_that_are_no_interval_are_refused(zoo: Zoo) -> None:
    model = repaired(zoo("qwen3_5_text"))
    view = model.view()
    kinds = ["full_attention", *["linear_attention"] * 3]
    other = replace(view, text={**view.text, "layer_types": kinds}, resolved=None)
    with pytest.raises(InputError, match="every n-th layer"):
        trunk_config(model, other, dialect_of(view), {}, head=False, sees=False)


def test_what_stays_as_it_is_is_said(zoo: Zoo) -> None:
    (plan,) = plan_mlx(repaired(zoo("smollm")), MlxOptions(bits=4))
    assert any("22 matrices" in note and "groups of 64" in note for note in plan.notes)
    (plan,) = plan_mlx(repaired(zoo("smollm")), MlxOptions(bits=4, group_size=32))
    assert any("3 matrices" in note for note in plan.notes)
    plan, *_ = plan_mlx(repaired(zoo("qwen3_5")), MlxOptions(text_only=True))
    assert any("the vision tower is left out (33 tensors)" in note for note in plan.notes)


def test_biases_that_mlx_lm_has_no_place_for_are_refused(zoo_copy: ZooCopy) -> None:
    from safetensors.torch import load_file, save_file

    folder = zoo_copy("qwen3")
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight") and "self_attn" in n]:
        tensors[name.replace("weight", "bias")] = torch.zeros(tensors[name].shape[0], dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="qwen3 has no biases"):
        plan_mlx(repaired(folder), MlxOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 7}, "--bits is 7"),
        ({"group_size": 16}, "--group-size is 16"),
        ({"mode": "fp4"}, "--mode is fp4"),
        ({"mode": "mxfp4", "bits": 8}, "4 bits and groups of 32"),
        ({"mode": "nvfp4", "recipe": "mixed_3_6"}, "for mode affine"),
        ({"recipe": "mixed_1_2"}, "--recipe is mixed_1_2"),
        ({"dtype": "float8"}, "--dtype is float8"),
        ({"mtp": ("drafter", "gguf")}, "--mtp-layout is gguf"),
        ({"mtp": ("none", "drafter")}, "none stands alone"),
        ({"mtp": ()}, "none stands alone"),
        ({"mtp_bits": 7}, "--mtp-bits is 7"),
        ({"mtp_group_size": 8}, "--mtp-group-size is 8"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageProblem, match=message):
        MlxOptions(**options)


def test_labels() -> None:
    labels = [
        MlxOptions().label,
        MlxOptions(bits=6).label,
        MlxOptions(mode="mxfp8").label,
        MlxOptions(recipe="mixed_3_6").label,
    ]
    assert labels == ["4bit", "6bit", "mxfp8", "mixed_3_6"]


# --- importance ------------------------------------------------------------------------------------------


def matrix_for(folder: Path) -> tuple[ImportanceMatrix, dict[str, np.ndarray]]:
    """Uneven importance of every matrix, in llama.cpp's words, and by canonical name as it was collected."""
    view = repaired(folder).view()
    sums, counts = uncollected(view)
    rng = np.random.default_rng(0)
    sums = {
        name: np.exp(rng.normal(0, 1.5, values.shape)).astype(np.float32) for name, values in sums.items()
    }
    matrix = gguf_importance(
        view, sums, counts, datasets=("d",), chunk_count=1, chunk_size=1, label="imatrix.gguf"
    )
    return matrix, sums


def test_importance_lowers_the_weighted_error_and_nothing_else(zoo: Zoo, tmp_path: Path) -> None:
    source = zoo("qwen3_5_moe", value_heads=4, key_heads=2)
    model = repaired(source)
    matrix, sums = matrix_for(source)
    plain, _ = plan_mlx(model, MlxOptions(bits=4))
    fit, _ = plan_mlx(model, MlxOptions(bits=4, importance=matrix))
    assert [(f.name, f.size) for f in fit.files] == [(f.name, f.size) for f in plain.files]
    assert fit.details["importance_matrix"] == "imatrix.gguf"
    tensors = {tensor.name: tensor for tensor in model.view()}
    weighted = 0
    for one, other in zip(plain.tensors, fit.tensors, strict=True):
        assert (one.name, one.streams) == (other.name, other.streams)
        need = other.need(Kind.INPUT_SQUARES)
        if need is None:
            continue
        weighted += 1
        found = sums[one.source.name]
        table = fit.evidence.of(Kind.INPUT_SQUARES, *need.of)
        assert np.array_equal(table, found)  # value heads back in the checkpoint's order
        data, stored = tensors[one.source.name].data, other.stored
        assert isinstance(stored, MlxAffine)
        assert one.stored == stored
        errors = [_error(stored, data, weights, found) for weights in (None, table)]
        assert errors[1] < 0.9 * errors[0]
    assert weighted == sum(
        len(t.shape) >= 2 and t.block is Block.TRUNK and t.role is not Role.LINEAR_CONV
        for t in tensors.values()
    )
    assert any("has nothing for 2 of" in note for note in fit.notes)  # embedding, lm_head


def _error(stored: MlxAffine, data: Any, weights: np.ndarray | None, importance: np.ndarray) -> float:
    from qexport.formats.plan import Arrangement

    rows = arranged_rows(data, Arrangement(), 0, data.matrix_shape[0])
    parts = encode_rows(stored, rows, 0, Matrices(len(rows) // len(importance), weights))
    packed, scales, biases = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    wide = [torch.from_numpy(part).view(torch.bfloat16).float() for part in (scales, biases)]
    made = dequantize(packed, *wide, stored.bits).double()
    weights = torch.from_numpy(np.repeat(importance, len(rows) // len(importance), 0)).double()
    return float(((made - rows.double()) ** 2 * weights).sum())


def test_importance_of_another_model_is_refused(zoo: Zoo) -> None:
    matrix, _ = matrix_for(zoo("qwen3_5"))
    with pytest.raises(InputError, match="another model"):
        plan_mlx(repaired(zoo("smollm")), MlxOptions(importance=matrix))
    with pytest.raises(UsageProblem, match="no use in mode mxfp4"):
        MlxOptions(mode="mxfp4", importance=matrix)
