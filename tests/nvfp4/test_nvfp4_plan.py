"""NVFP4 folders: what a scope takes, what is shared, the values that readers find, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from expert_layouts import one_by_one
from nvfp4_folders import json_of, matrices, plan, repaired, same, write
from nvfp4_reading import tensors_in
from safetensors import safe_open
from zoo_types import Zoo

from qexport.errors import InputError, UsageProblem
from qexport.evidence.imatrix_file import ImportanceMatrix
from qexport.evidence.store import Kind
from qexport.families.roles import Block
from qexport.formats.gguf.importance import evidence_of, gguf_importance, uncollected
from qexport.formats.nvfp4.options import Nvfp4Options

LAYOUTS = ["modelopt", "compressed-tensors"]
MODELS = ["qwen3_5", "qwen3_5_moe", "qwen3_5_moe_122b", "smollm", "qwen2"]


def importance(source: Path, spread: float = 1.0) -> ImportanceMatrix:
    """An importance matrix of random numbers."""
    view = repaired(source).view()
    ones, counts = uncollected(view)
    rng = np.random.default_rng(3)
    sums = {name: np.exp(rng.normal(0, spread, one.shape)).astype(np.float32) for name, one in ones.items()}
    return gguf_importance(view, sums, counts, datasets=(), chunk_count=1, chunk_size=1, label="some.gguf")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_values_and_what_is_left(zoo: Zoo, tmp_path: Path, model: str, layout: str) -> None:
    """Every matrix is near its source; everything else is its source."""
    made = write(zoo(model), tmp_path / "out", layout=layout)
    source, stored = one_by_one(tensors_in(zoo(model))), tensors_in(tmp_path / "out")
    found = matrices(stored)
    for module, matrix in found.items():
        assert ".mlp." in module
        assert module.endswith(("gate_proj", "up_proj", "down_proj"))
        assert not module.startswith("mtp")
        original = source.pop(f"{module}.weight").float()
        error = (matrix.values - original).square().mean().sqrt() / original.square().mean().sqrt()
        assert 0.05 < error < 0.12
    left = {name: tensor for name, tensor in stored.items() if name.rpartition(".")[0] not in found}
    assert left.keys() == source.keys()
    if model == "qwen2":  # float32: nothing of that width stays
        source = {name: tensor.bfloat16() for name, tensor in source.items()}
        assert any("float32" in note for note in made.notes)
        assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert [name for name in left if not same(left[name], source[name])] == []
    counted = made.details["quantized"]
    assert sum(role["tensors"] for role in counted.values()) == len(found)
    nbytes = sum(t.numel() * t.element_size() for n, t in stored.items() if n.rpartition(".")[0] in found)
    assert sum(role["bytes"] for role in counted.values()) == nbytes


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", ["qwen3_5", "qwen3_5_moe", "smollm"])
def test_fused_matrices_share_a_global_scale(zoo: Zoo, tmp_path: Path, model: str, layout: str) -> None:
    write(zoo(model), tmp_path / "out", layout=layout, scope="all-linear")
    found = matrices(tensors_in(tmp_path / "out"))
    source = one_by_one(tensors_in(zoo(model)))
    groups = 0
    for module in found:
        parent, _, last = module.rpartition(".")
        group = next(
            (
                g
                for g in (
                    ("q_proj", "k_proj", "v_proj"),
                    ("gate_proj", "up_proj"),
                    ("in_proj_qkv", "in_proj_z"),
                )
                if last in g
            ),
            (last,),
        )
        parts = [f"{parent}.{part}" for part in group]
        assert len({found[part].shared for part in parts}) == 1
        amax = max(source[f"{part}.weight"].abs().max().item() for part in parts)
        assert found[module].shared == pytest.approx(amax / 2688, rel=1e-6 if layout == "modelopt" else 0.01)
        groups += len(group) > 1
    assert groups
    assert len({matrix.shared for matrix in found.values()}) > len(found) / 3  # not one for everything


def test_scale_tensors(zoo: Zoo, tmp_path: Path) -> None:
    """dtypes, shapes, and every tensor at a multiple of its item size."""
    for layout, name, shape in (
        ("modelopt", "weight_scale_2", []),
        ("compressed-tensors", "weight_global_scale", [1]),
    ):
        out = tmp_path / layout
        write(zoo("qwen3_5_moe"), out, layout=layout)
        with safe_open(out / "model.safetensors", "pt") as file:
            found = [key for key in file.keys() if key.endswith(name)]  # noqa: SIM118
            assert len(found) == 4 * (4 + 1) * 3
            assert all(file.get_slice(key).get_shape() == shape for key in found)
            assert all(file.get_slice(key).get_dtype() == "F32" for key in found)
        raw = (out / "model.safetensors").read_bytes()
        assert tensors_in(out)["lm_head.weight"].data_ptr() is not None
        assert len(raw) % 4 == 0


@pytest.mark.parametrize(
    ("scope", "roles"),
    [
        ("mlp", {"ffn_gate", "ffn_up", "ffn_down"}),
        ("mlp+attention", {"ffn_gate", "ffn_up", "ffn_down", "attn_q", "attn_k", "attn_v", "attn_output"}),
        (r"self_attn", {"attn_q", "attn_k", "attn_v", "attn_output"}),
        (r"layers\.[02]\..*(gate|up)_proj$", {"ffn_gate", "ffn_up"}),
    ],
)
def test_scopes(zoo: Zoo, scope: str, roles: set[str]) -> None:
    made = plan(zoo("qwen3_5"), scope=scope)
    assert set(made.details["quantized"]) == roles
    assert {role["algo"] for role in made.details["quantized"].values()} == {"NVFP4"}
    if "[02]" in scope:
        assert made.details["quantized"]["ffn_up"]["tensors"] == 2


def test_nvidia_scope(zoo: Zoo, tmp_path: Path) -> None:
    made = write(zoo("qwen3_5_moe"), tmp_path / "out", scope="nvidia")
    algos = {role: entry["algo"] for role, entry in made.details["quantized"].items()}
    assert algos["output"] == algos["experts_up"] == "NVFP4"
    assert algos["attn_q"] == algos["linear_out"] == "F8_E4M3"
    assert "linear_a" not in algos
    stored, source = tensors_in(tmp_path / "out"), tensors_in(zoo("qwen3_5_moe"))
    fp8 = [name.removesuffix(".input_scale") for name in stored if name.endswith("input_scale")]
    assert len(fp8) == 3 * 3 + 4
    for module in fp8:
        assert stored[f"{module}.input_scale"].item() == 1
        decoded = stored[f"{module}.weight"].float() * stored[f"{module}.weight_scale"]
        original = source[f"{module}.weight"].float()
        assert (decoded - original).norm() < 0.04 * original.norm()
    q, k = (stored[f"model.language_model.layers.3.self_attn.{part}_proj.weight_scale"] for part in "qk")
    assert q == k
    assert "FP8 activations have the scale 1" in " ".join(made.notes)
    kept = plan(zoo("qwen3_5_moe"), scope="nvidia", keep_head=True)
    assert "output" not in kept.details["quantized"]
    tied = plan(zoo("qwen3_5_tied"), scope="nvidia")
    assert "output" not in tied.details["quantized"]


def test_activation_scales_from_importance(zoo: Zoo, tmp_path: Path) -> None:
    matrix = importance(zoo("qwen3_5"))
    made = write(zoo("qwen3_5"), tmp_path / "out", scope="nvidia", importance=matrix)
    stored = tensors_in(tmp_path / "out")
    module = "model.language_model.layers.0.linear_attn.out_proj"
    means = evidence_of(repaired(zoo("qwen3_5")).view(), matrix).tables[Kind.INPUT_SQUARES]
    largest = float(means["model.layers.0.linear_attn.out_proj.weight"].max())
    assert stored[f"{module}.input_scale"].item() == pytest.approx(32 * math.sqrt(largest) / 448)
    assert "scale 1" not in " ".join(made.notes)


def test_what_comes_in_is_what_went_out(zoo: Zoo) -> None:
    """DeltaNet's output projection has its columns in another order in GGUF."""
    view = repaired(zoo("qwen3_5_moe")).view()
    ones, counts = uncollected(view)
    rng = np.random.default_rng(0)
    sums = {name: rng.random(one.shape).astype(np.float32) for name, one in ones.items()}
    matrix = gguf_importance(view, sums, counts, datasets=(), chunk_count=1, chunk_size=1, label="x")
    back = evidence_of(view, matrix).tables[Kind.INPUT_SQUARES]
    names = {tensor.name for tensor in view if tensor.block in (Block.TRUNK, Block.MTP)} & sums.keys()
    assert back.keys() == names
    assert all(np.array_equal(back[name], sums[name]) for name in names)
    other = ImportanceMatrix({"x": np.ones((1, 2))}, {"x": np.ones(1)}, (), 0, 0, "gguf", "y.gguf", "")
    with pytest.raises(InputError, match=r"y\.gguf names none"):
        evidence_of(view, other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_searches_lose_less(zoo: Zoo, tmp_path: Path, layout: str) -> None:
    source, matrix = zoo("qwen3_5_moe"), importance(zoo("qwen3_5_moe"), 2.0)
    weights = evidence_of(repaired(source).view(), matrix).tables[Kind.INPUT_SQUARES]
    original = one_by_one(tensors_in(source))
    losses: dict[str, list[float]] = {}
    for search in ("max", "mse", "importance"):
        given = {"importance": matrix} if search == "importance" else {}
        write(source, tmp_path / search, layout=layout, scale_search=search, **given)
        flat = weighted = 0.0
        for module, stored in matrices(tensors_in(tmp_path / search)).items():
            squares = (stored.values - original[f"{module}.weight"].float()).square()
            name = module.replace("language_model.", "") + ".weight"
            expert = 0
            if ".experts." in name:
                head, _, tail = name.partition(".experts.")
                number, _, last = tail.partition(".")
                name, expert = f"{head}.experts.{last}", int(number)
            flat += squares.sum().item()
            weighted += (squares * torch.from_numpy(weights[name][expert])).sum().item()
        losses[search] = [flat, weighted]
    assert losses["mse"][0] < 0.85 * losses["max"][0]
    assert losses["importance"][1] < 0.9 * losses["mse"][1] < 0.85 * losses["max"][1]


def test_shards_do_not_matter(zoo: Zoo, tmp_path: Path) -> None:
    write(zoo("qwen3_5_moe"), tmp_path / "one")
    write(zoo("qwen3_5_moe"), tmp_path / "many", max_shard=1 << 20)
    one, many = tensors_in(tmp_path / "one"), tensors_in(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(same(one[name], many[name]) for name in one)
    index = json_of(tmp_path / "many", "model.safetensors.index.json")
    assert index["weight_map"].keys() == many.keys()
    assert len(set(index["weight_map"].values())) > 3


def test_refusals(zoo: Zoo) -> None:
    with pytest.raises(UsageProblem, match=r"matches .*gate_proj but not .*up_proj, which runtimes fuse"):
        plan(zoo("qwen3_5"), scope="gate_proj|down_proj")
    with pytest.raises(UsageProblem, match="which runtimes fuse"):
        plan(zoo("qwen3_5_moe"), scope=r"experts\.\d+\.(gate|up)_proj")
    with pytest.raises(UsageProblem, match="matches no linear layer"):
        plan(zoo("qwen3_5"), scope=r"mtp\.|lm_head|mlp\.experts")
    with pytest.raises(UsageProblem, match=r"neither one of mlp, mlp\+attention, all-linear, nvidia nor"):
        plan(zoo("qwen3_5"), scope="(")
    with pytest.raises(InputError, match="rows of 680 values"):
        plan(zoo("smollm", intermediate=680))
    assert plan(zoo("smollm", intermediate=680), scope=r"(gate|up)_proj$").details["quantized"]
    with pytest.raises(InputError, match=r"does not divide into FP8's tiles of 128: .* is \d+ by 192"):
        plan(zoo("qwen3_5", hidden=192), scope="nvidia", layout="compressed-tensors")
    view = repaired(zoo("qwen3_5")).view()
    ones, _ = uncollected(view)
    halves = {name: one[:, ::2] for name, one in ones.items() if "mlp" in name}
    small = ImportanceMatrix(
        {"blk.0.ffn_up.weight": next(iter(halves.values()))},
        {"blk.0.ffn_up.weight": np.ones(1)},
        (),
        0,
        0,
        "gguf",
        "small.gguf",
        "",
    )
    with pytest.raises(InputError, match="made for another model"):
        plan(zoo("qwen3_5"), scale_search="importance", importance=small)


def test_options_that_contradict_each_other(zoo: Zoo) -> None:
    matrix = importance(zoo("qwen3_5"))
    for wrong, message in (
        ({"layout": "gguf"}, "layout is 'gguf'"),
        ({"scale_search": "best"}, "scale_search is 'best'"),
        ({"keep_head": True}, "only scope nvidia"),
        ({"scale_search": "importance"}, "needs an importance matrix"),
        ({"importance": matrix}, "would not be used"),
    ):
        with pytest.raises(UsageProblem, match=message):
            Nvfp4Options(**wrong)


def test_importance_for_some(zoo: Zoo) -> None:
    matrix = importance(zoo("qwen3_5"))
    sums = {name: one for name, one in matrix.sums.items() if "ffn_down" not in name}
    few = ImportanceMatrix(sums, matrix.counts, (), 0, 0, "gguf", "few.gguf", "")
    made = plan(zoo("qwen3_5"), scale_search="importance", importance=few)
    assert "nothing for 4 of 12 tensors" in made.notes[0]
    assert made.details["importance_matrix"] == "few.gguf"
