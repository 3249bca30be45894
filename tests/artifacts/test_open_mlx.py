"""MLX folders read back: every mode and width, and the head from wherever it was put."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import packed_folders as folders
import pytest
from safetensors.torch import save_file
from zoo_types import Zoo

from qexport.errors import InputError
from qexport.families.view import ModelView
from qexport.formats.opening import open_artifact
from qexport.onepass.rows import read_rows

SMALL = {"hidden": 128, "intermediate": 256, "layers": 4}
Source = Callable[[str], Path]


@pytest.fixture
def source(zoo: Zoo) -> Source:
    return lambda name: zoo(name, **SMALL)


def check(view: ModelView, expected: folders.Tensors, *, head: bool) -> None:
    """Every value of the view, and none of the folder's left over."""
    names = set()
    for tensor in view:
        found = read_rows(tensor.data, 0, tensor.data.matrix_shape[0]).float().reshape(tensor.shape)
        assert found.equal(expected[tensor.name]), tensor.name
        names.add(tensor.name)
    assert names == {name for name in expected if head or not name.startswith("mtp.")}


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 64), (4, 128), (5, 32), (6, 64), (8, 32)])
def test_affine(source: Source, tmp_path: Path, bits: int, group: int) -> None:
    packed = folders.mlx_folder(source("qwen3_5"), bits=bits, group=group)
    artifact = open_artifact(packed.write(tmp_path / "out"))
    assert artifact.layout.word == "mlx"
    check(artifact.view(), packed.expected, head=True)


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_modes_and_stacked_experts(source: Source, tmp_path: Path, mode: str) -> None:
    group = {"affine": 64, "nvfp4": 16}.get(mode, 32)
    packed = folders.mlx_folder(
        source("qwen3_5_moe"), bits=8 if mode == "mxfp8" else 4, group=group, mode=mode
    )
    view = open_artifact(packed.write(tmp_path / "out")).view()
    check(view, packed.expected, head=True)
    experts = next(t for t in view if t.name == "model.layers.0.mlp.experts.up_proj.weight").data
    whole = read_rows(experts, 0, experts.matrix_shape[0])
    assert read_rows(experts, 250, 260).equal(whole[250:260])


def test_not_quantized(source: Source, tmp_path: Path) -> None:
    """bf16, as `mlx_lm convert` without -q writes it: told by the header alone."""
    packed = folders.mlx_folder(source("qwen3_5"))
    names = folders.mlx_names(folders.Packed(packed.source).tensors)
    packed.tensors |= {name: tensor for name, tensor in names.items() if not folders.NEVER.search(name)}
    packed.tensors = {
        name: tensor for name, tensor in packed.tensors.items() if not name.endswith(("scales", "biases"))
    }
    del packed.config["quantization"], packed.config["quantization_config"]
    artifact = open_artifact(packed.write(tmp_path / "out"))
    assert artifact.layout.word == "mlx"
    plain = folders.Packed(packed.source).expected
    kept = {name: tensor for name, tensor in plain.items() if not folders.NEVER.search(name)}
    check(artifact.view(), packed.expected | {n: t for n, t in kept.items() if "visual" not in n}, head=True)


def _drafter(out: Path, head: folders.Tensors) -> None:
    out.mkdir()
    bare = {name.removeprefix("mtp."): tensor.contiguous() for name, tensor in head.items()}
    save_file(bare, out / "model.safetensors", metadata={"format": "mlx"})
    (out / "config.json").write_text(json.dumps({"model_type": "qwen3_5_mtp", "text_config": {}}))


@pytest.mark.parametrize("model", ["qwen3_5", "qwen3_5_moe"])
@pytest.mark.parametrize("layout", ["beside", "named", "mtplx", "vllm-mlx", "sidecar named"])
def test_the_head_is_found(source: Source, tmp_path: Path, model: str, layout: str) -> None:
    packed = folders.mlx_folder(source(model))
    head = folders.take_head(packed)
    out, named = packed.write(tmp_path / "Model-4bit"), None
    if layout == "beside":
        _drafter(tmp_path / "Model-4bit-MTP", head)
    elif layout == "named":
        _drafter(named := tmp_path / "elsewhere", head)
    else:
        names = {"mtplx": "mtp.safetensors", "vllm-mlx": "mtp/weights.safetensors"}
        file = out / names[layout] if layout in names else (named := tmp_path / "head.safetensors")
        file.parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in head.items()}, file)
    artifact = open_artifact(out, head=named)
    assert artifact.has_head
    check(artifact.view(), packed.expected, head=True)


def test_no_head(source: Source, tmp_path: Path) -> None:
    packed = folders.mlx_folder(source("qwen3_5"))
    folders.take_head(packed)
    artifact = open_artifact(packed.write(tmp_path / "Model"))
    assert not artifact.has_head
    assert artifact.declared_mtp == 0
    view = artifact.view()
    assert view.mtp_layers == 0
    check(view, packed.expected, head=False)


def test_a_drafter_alone_is_no_model(source: Source, tmp_path: Path) -> None:
    _drafter(tmp_path / "head", folders.take_head(folders.mlx_folder(source("qwen3_5"))))
    with pytest.raises(InputError, match="an MTP head alone"):
        open_artifact(tmp_path / "head")


@pytest.mark.parametrize(
    ("part", "words"),
    [("biases", "no biases"), ("scales", "is U32 and has no scale")],
)
def test_a_lost_part_is_named(source: Source, tmp_path: Path, part: str, words: str) -> None:
    packed = folders.mlx_folder(source("qwen3_5"))
    packed.drop(rf"layers\.0\.mlp\.up_proj\.{part}")
    with pytest.raises(InputError, match=rf"layers\.0\.mlp\.up_proj\.weight.*{words}"):
        open_artifact(packed.write(tmp_path / "out")).view()


def test_a_convolution_that_was_not_turned(source: Source, tmp_path: Path) -> None:
    packed = folders.mlx_folder(source("qwen3_5"))
    name = "language_model.model.layers.0.linear_attn.conv1d.weight"
    packed.tensors[name] = packed.tensors[name].transpose(1, 2)
    with pytest.raises(InputError, match="is no convolution of MLX's"):
        open_artifact(packed.write(tmp_path / "out")).view()
