"""Hugging Face folders read back: every value, any rows, nothing more in memory than they take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import packed_folders as folders
import pytest
import torch
from zoo_types import Zoo

from qexport.artifacts import Opened
from qexport.errors import InputError, UsageProblem
from qexport.families.view import ModelView
from qexport.formats.opening import open_artifact
from qexport.onepass.rows import read_rows

Source = Callable[[str], Path]
Make = Callable[[Path], folders.Packed]
CASES: dict[str, tuple[Make, str]] = {
    "plain": (folders.Packed, "safetensors"),
    "fp8": (folders.fp8_folder, "fp8"),
    "compressed fp8": (folders.compressed_fp8, "compressed-tensors"),
    "compressed fp8 rows": (lambda s: folders.compressed_fp8(s, "channel"), "compressed-tensors"),
    "compressed nvfp4": (folders.compressed_nvfp4, "compressed-tensors"),
    "compressed bytes": (folders.compressed_bytes, "compressed-tensors"),
    "compressed int": (folders.compressed_int, "compressed-tensors"),
    "compressed int, points": (lambda s: folders.compressed_int(s, points=True), "compressed-tensors"),
    "modelopt": (folders.modelopt, "modelopt"),
    "modelopt tiles": (folders.modelopt_tiles, "modelopt"),
    "modelopt awq": (folders.modelopt_awq, "modelopt"),
    "modelopt mixed": (lambda s: folders.modelopt(s, mixed=True), "modelopt"),
    "awq": (folders.awq_folder, "awq"),
    "gptq": (folders.gptq_folder, "gptq"),
    "gptq v2": (lambda s: folders.gptq_folder(s, less_one=False), "gptq"),
    "gptq, points": (lambda s: folders.gptq_folder(s, sym=False, bits=8), "gptq"),
    "gptq, reordered": (lambda s: folders.gptq_folder(s, sym=False, reorder=True), "gptq"),
}


SMALL = {"hidden": 128, "intermediate": 256, "layers": 4}


@pytest.fixture
def source(zoo: Zoo) -> Callable[[str], Path]:
    return lambda name: zoo(name, **SMALL)


def values(view: ModelView, name: str) -> torch.Tensor:
    tensor = next(tensor for tensor in view if tensor.name == name)
    return read_rows(tensor.data, 0, tensor.data.matrix_shape[0]).float().reshape(tensor.shape)


def expected(folder: folders.Packed, name: str, experts: int) -> torch.Tensor:
    """By canonical name, experts stacked."""
    if ".mlp.experts." not in name:
        return folder.expected[name]
    each = [name.replace(".experts.", f".experts.{e}.") for e in range(experts)]
    return torch.stack([folder.expected[one] for one in each])


@pytest.mark.parametrize(
    ("case", "model"),
    [*((case, "qwen3_5_moe") for case in CASES), ("fp8", "qwen3_5"), ("modelopt mixed", "qwen3_5")],
)
def test_every_value(source: Source, tmp_path: Path, case: str, model: str) -> None:
    make, word = CASES[case]
    folder = make(source(model))
    artifact = open_artifact(folder.write(tmp_path / "out"))
    assert artifact.layout.word == word
    assert artifact.has_head
    assert artifact.declared_mtp == 1
    view = artifact.view()
    assert view.mtp_layers == 1
    experts = int(view.text.get("num_experts") or 0)
    for tensor in view:
        wanted = expected(folder, tensor.name, experts)
        found = values(view, tensor.name)
        # Two products in another order: of a scale and a global scale with a level.
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0, msg=tensor.name)
    names = {tensor.name for tensor in view}
    assert {name for name in folder.expected if ".mlp.experts." not in name} <= names


@pytest.mark.parametrize("case", CASES)
def test_any_rows(source: Source, tmp_path: Path, case: str) -> None:
    """Rows that begin inside a tile or an expert are those of the whole."""
    view = open_artifact(CASES[case][0](source("qwen3_5_moe")).write(tmp_path / "out")).view()
    for part in ("mlp.experts.up_proj", "mlp.shared_expert.down_proj", "linear_attn.in_proj_qkv"):
        tensor = next(t for t in view if t.name == f"model.layers.0.{part}.weight")
        rows, columns = tensor.data.matrix_shape
        whole = read_rows(tensor.data, 0, rows)
        for start, stop in ((0, 1), (1, 130), (127, 128), (rows - 3, rows)):
            found = read_rows(tensor.data, start, min(stop, rows))
            assert found.equal(whole[start : min(stop, rows)])
            assert found.shape == (min(stop, rows) - start, columns)


def test_edge_tiles(zoo: Zoo, tmp_path: Path) -> None:
    """Sides that are no multiples of 128: the last tiles are smaller."""
    folder = folders.fp8_folder(zoo("qwen3_5_tied", layers=1, mtp=False))  # 320 wide, 544 high
    view = open_artifact(folder.write(tmp_path / "out")).view()
    name = "model.layers.0.mlp.up_proj.weight"
    assert folder.expected[name].shape == (544, 320)
    assert values(view, name).equal(folder.expected[name])


def test_fused_experts_in_fp8(source: Source, tmp_path: Path) -> None:
    """transformers' own layout: three dimensions, and a grid of tiles for each expert."""
    folder = folders.fp8_folder(source("qwen3_5_moe"))
    at = "model.language_model.layers.1.mlp.experts"
    parts = {"weight": "", "weight_scale_inv": "_scale_inv"}
    for part, suffix in parts.items():
        gate, up, down = (
            [folder.tensors.pop(f"{at}.{e}.{which}_proj.{part}") for e in range(4)]
            for which in ("gate", "up", "down")
        )
        both = [
            torch.cat([one.view(torch.uint8), two.view(torch.uint8)])
            for one, two in zip(gate, up, strict=True)
        ]
        folder.tensors[f"{at}.gate_up_proj{suffix}"] = torch.stack(both).view(gate[0].dtype)
        folder.tensors[f"{at}.down_proj{suffix}"] = torch.stack(down)
    view = open_artifact(folder.write(tmp_path / "out")).view()
    for which in ("gate", "up", "down"):
        name = f"model.layers.1.mlp.experts.{which}_proj.weight"
        assert values(view, name).equal(expected(folder, name, 4))


def _opened(packed: folders.Packed, out: Path) -> Opened:
    return open_artifact(packed.write(out))


@pytest.mark.parametrize(
    ("make", "pattern", "words"),
    [
        (folders.fp8_folder, r"layers\.0\.mlp\.up_proj\.weight_scale_inv", "has no scale"),
        (folders.modelopt, r"layers\.0\.mlp\.up_proj\.weight_scale_2", "no global scale"),
        (folders.compressed_nvfp4, r"layers\.0\.mlp\.up_proj\.weight_packed", "and no weight"),
        (folders.fp8_folder, r"model\.norm", "missing: model.norm.weight"),
    ],
)
def test_what_cannot_be_decoded_is_named(
    source: Source, tmp_path: Path, make: Make, pattern: str, words: str
) -> None:
    packed = make(source("qwen3_5"))
    packed.drop(pattern)
    with pytest.raises(InputError, match=words):
        _opened(packed, tmp_path / "out").view()


@pytest.mark.parametrize(
    ("case", "place", "planted"),
    [
        ("modelopt", ("ignore",), [3]),
        ("modelopt", ("ignore",), "lm_head"),
        ("modelopt", ("quantized_layers",), ["lm_head"]),
        ("modelopt mixed", ("quantized_layers", "lm_head"), "FP8"),
        ("fp8", ("modules_to_not_convert",), [None]),
        ("compressed fp8", ("ignore",), ["re:(["]),
        ("compressed fp8", ("ignore",), {"a": 1}),
        ("compressed fp8", ("config_groups",), [{}]),
        ("compressed fp8", ("config_groups", "group_0"), []),
        ("compressed fp8", ("config_groups", "group_0", "targets"), [["Linear"]]),
        ("compressed nvfp4", ("config_groups", "group_0", "weights", "group_size"), "16 or so"),
    ],
)
def test_a_declaration_of_another_shape_is_said(
    source: Source, tmp_path: Path, case: str, place: tuple[str, ...], planted: object
) -> None:
    make, _ = CASES[case]
    folder = make(source("qwen3_5"))
    table = folder.config["quantization_config"]
    for key in place[:-1]:
        table = table.setdefault(key, {})
    table[place[-1]] = planted
    with pytest.raises(InputError, match="its quantization"):
        open_artifact(folder.write(tmp_path / "out"))


def test_scales_of_another_shape(source: Source, tmp_path: Path) -> None:
    packed = folders.fp8_folder(source("qwen3_5"))
    name = "model.language_model.layers.0.mlp.up_proj.weight_scale_inv"
    packed.tensors[name] = packed.tensors[name][:, :1].repeat(1, 3)
    with pytest.raises(InputError, match=r"weight_scale_inv is BF16 \(2, 3\), expected \(2, 1\)"):
        _opened(packed, tmp_path / "out").view()


def test_other_methods_are_refused_by_name(source: Source, tmp_path: Path) -> None:
    packed = folders.Packed(source("qwen3_5"))
    packed.config["quantization_config"] = {"quant_method": "bitsandbytes", "bits": 4}
    with pytest.raises(InputError, match="'bitsandbytes' is not one that qexport reads"):
        _opened(packed, tmp_path / "out")


def test_a_head_of_its_own_is_only_for_formats_that_have_one(source: Source, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="inside it"):
        open_artifact(source("qwen3_5"), head=tmp_path / "head")
