"""Numbers that are none, planted into every stored form; and the same files whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import packed_folders as folders
import pytest
import torch
from safetensors.torch import save_file
from zoo_types import Zoo

from qexport.artifacts.layout import OnDisk
from qexport.formats.gguf import numbers as gguf_numbers
from qexport.formats.opening import layout_of
from qexport.receipt.verification import Check, Status, Verdict
from qexport.verification.stored_numbers import check_numbers

SMALL = {"hidden": 128, "intermediate": 256, "layers": 4}
BLOCKS = 400


def write_blocks(path: Path, type_name: str, data: np.ndarray) -> Path:
    """A GGUF of one tensor, ``data`` being its blocks as bytes."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("one.weight", data, raw_dtype=gguf.GGMLQuantizationType[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def look(path: Path, **options: int) -> Verdict:
    found = OnDisk(path)
    return check_numbers(layout_of(found).describe(found).numbers(), **options)


def gguf_types() -> list[str]:
    return sorted(set(gguf_numbers.BLOCKS) - {"MXFP4", "NVFP4", "Q1_0", "F64"})


@pytest.mark.parametrize("type_name", gguf_types())
def test_a_block_is_bad_where_it_decodes_to_no_number(tmp_path: Path, type_name: str) -> None:
    """Random bytes have all kinds of scales; gguf-py's decoder is the judge of each block."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[type_name]
    values, size = GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(7).integers(0, 256, (BLOCKS, size), np.uint8)
    if type_name in ("F32", "BF16"):  # rare among random bits
        data[11, -2:] = (0x80, 0x7F)
    with np.errstate(all="ignore"):
        decoded = dequantize(data.copy(), kind).reshape(BLOCKS, values)
    bad = ~np.isfinite(decoded).all(axis=1)
    assert bad.any()
    assert not bad.all()
    found = look(write_blocks(tmp_path / "bad.gguf", type_name, data))
    assert found.status is Status.FAIL
    assert f"one.weight: {bad.sum()} of {BLOCKS}" in found.summary
    assert f"block {int(bad.argmax())}," in found.summary
    healthy = look(write_blocks(tmp_path / "good.gguf", type_name, data[~bad]))
    assert healthy.status is Status.PASS, healthy.summary


@pytest.mark.parametrize(
    ("type_name", "size", "place", "code"),
    [("MXFP4", 17, 0, 0xFF), ("NVFP4", 36, 3, 0x7F), ("Q1_0", 18, 1, 0x7C), ("F64", 8, 7, 0x7F)],
)
def test_codes_that_stand_for_no_number(
    tmp_path: Path, type_name: str, size: int, place: int, code: int
) -> None:
    data = np.full((4, size), 0x31, np.uint8)
    assert look(write_blocks(tmp_path / "good.gguf", type_name, data)).status is Status.PASS
    data[2, place] = code
    if type_name == "F64":
        data[2, 6] = 0xF0
    found = look(write_blocks(tmp_path / "bad.gguf", type_name, data))
    assert found.status is Status.FAIL
    assert "block 2," in found.summary


def test_a_file_longer_than_one_piece(tmp_path: Path) -> None:
    data = np.zeros((60, 34), np.uint8)
    data[41, 1] = 0x7E
    found = look(write_blocks(tmp_path / "bad.gguf", "Q8_0", data), chunk=100)
    assert "1 of 60 blocks" in found.summary
    assert "block 41, row 41" in found.summary


def test_a_type_that_is_not_known_is_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_numbers, "BLOCKS", {})
    found = look(write_blocks(tmp_path / "one.gguf", "Q8_0", np.zeros((4, 34), np.uint8)))
    assert found.status is Status.SKIPPED
    assert "Q8_0" in found.summary


# --- folders ---------------------------------------------------------------------------------------------

Made = Callable[[Path], folders.Packed]
FP8 = ("q_proj.weight", "q_proj.weight_scale_inv", "norm.weight", "embed_tokens.weight")
COMPRESSED = ("up_proj.weight_scale", "up_proj.weight_global_scale", "lm_head.weight")
MXFP8 = ("q_proj.scales", "q_proj.weight")
FORMS: dict[str, tuple[Made, tuple[str, ...]]] = {
    "fp8": (folders.fp8_folder, FP8),
    "ct-fp8": (folders.compressed_fp8, ("q_proj.weight_scale",)),
    "ct-nvfp4": (folders.compressed_nvfp4, COMPRESSED),
    "modelopt": (folders.modelopt, ("up_proj.weight_scale", "up_proj.weight_scale_2")),
    "affine": (folders.mlx_folder, ("q_proj.scales", "q_proj.biases", "mtp.norm.weight")),
    "mxfp4": (lambda s: folders.mlx_folder(s, group=32, mode="mxfp4"), ("q_proj.scales",)),
    "mxfp8": (lambda s: folders.mlx_folder(s, bits=8, group=32, mode="mxfp8"), MXFP8),
    "nvfp4": (lambda s: folders.mlx_folder(s, group=16, mode="nvfp4"), ("q_proj.scales",)),
}


def spoiled(tensor: torch.Tensor, part: str, form: str) -> torch.Tensor:
    """The tensor with one number that is none, in its last row."""
    tensor = tensor.clone()
    if tensor.is_floating_point() and tensor.element_size() > 1:
        tensor.view(-1)[-1] = torch.nan
        return tensor
    e8m0 = form in ("mxfp4", "mxfp8") and part.endswith("scales")
    tensor.view(torch.uint8).view(-1)[-1] = 0xFF if e8m0 else 0x7F
    return tensor


PLANTED = [(form, part) for form, (_, parts) in FORMS.items() for part in parts]


@pytest.mark.parametrize(("form", "part"), PLANTED)
def test_a_folder_with_one_number_that_is_none(zoo: Zoo, tmp_path: Path, form: str, part: str) -> None:
    packed = FORMS[form][0](zoo("qwen3_5", **SMALL))
    name = next(name for name in packed.tensors if name.endswith(part))
    packed.tensors[name] = spoiled(packed.tensors[name], part, form)
    found = look(packed.write(tmp_path / "out"))
    assert (found.check, found.status) == (Check.NUMBERS, Status.FAIL)
    assert name in found.summary
    assert found.data["faults"][1:] == []


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_folder_passes(zoo: Zoo, tmp_path: Path, form: str) -> None:
    found = look(FORMS[form][0](zoo("qwen3_5", **SMALL)).write(tmp_path / "out"))
    assert found.status is Status.PASS, found.summary
    assert found.data["not_looked_at"] == []


def test_ranges_of_the_cache_and_zero_divisors(zoo: Zoo, tmp_path: Path) -> None:
    packed = folders.compressed_nvfp4(zoo("qwen3_5", **SMALL))
    module = next(name for name in packed.tensors if name.endswith("up_proj.weight_global_scale"))
    packed.tensors[module].zero_()
    cache = "model.layers.3.self_attn.k_scale"
    packed.tensors[cache] = torch.tensor(torch.inf)
    found = look(packed.write(tmp_path / "out"))
    assert found.status is Status.FAIL
    assert f"{module} is zero" in found.summary
    assert cache in found.summary


def test_the_head_in_a_sidecar(zoo: Zoo, tmp_path: Path) -> None:
    packed = folders.mlx_folder(zoo("qwen3_5", **SMALL))
    head = folders.take_head(packed)
    name = next(name for name in head if name.endswith("q_proj.weight"))
    head[name] = spoiled(head[name], "weight", "affine")
    out = packed.write(tmp_path / "out")
    save_file({key: value.contiguous() for key, value in head.items()}, out / "mtp.safetensors")
    found = look(out)
    assert found.status is Status.FAIL, found.summary
    assert "q_proj" in found.summary
