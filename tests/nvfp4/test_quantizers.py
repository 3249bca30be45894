"""Libraries that quantize, run in a child on the repaired checkpoint; and the integers that they write."""

from __future__ import annotations

import subprocess
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from nvfp4_folders import repaired
from safetensors.torch import save_file
from zoo_types import Zoo

from qexport.artifacts.forms import decoded
from qexport.artifacts.rows import StoredPart
from qexport.checkpoint.local import LocalCheckpoint
from qexport.cli.main import cli
from qexport.doctor import diagnose
from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.formats.opening import open_artifact
from qexport.onepass.rows import read_rows
from qexport.receipt.store import read_receipt
from qexport.receipt.verification import Status
from qexport.run.adopt import Adoption, write_adopted
from qexport.run.quantizers import Quantizer, quantized_by
from qexport.verification.stored_form import check_stored_form

RECIPE = """\
quant_stage:
  quant_modifiers:
    QuantizationModifier:
      targets: [Linear]
      scheme: {scheme}
      ignore: ["lm_head", "re:.*visual.*", "re:.*linear_attn.in_proj_[ab]$"]
"""
SIZES = {"layers": 4, "hidden": 128, "intermediate": 256, "float32_ssm": False}


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes in words, the lowest bits first."""
    rows, columns = codes.shape
    values = (codes + (1 << bits - 1)).view(rows, columns * bits // 32, 32 // bits).to(torch.int64)
    words = (values << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["groups", "rows", "points", "order"])
def test_integers_are_read_as_their_library_reads_them(tmp_path: Path, bits: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(1 << bits - 1), 1 << bits - 1, (16, 64), generator=generator)
    groups = 1 if kind == "rows" else 4
    scale = torch.rand(16, groups, generator=generator)
    place = torch.arange(64) // (64 // groups)
    points = torch.zeros(16, groups, dtype=torch.int64)
    stored = {
        "weight_packed": packed(codes, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([16, 64]),
    }
    if kind == "points":
        points = torch.randint(-4, 4, (16, groups), generator=generator)
        stored["weight_zero_point"] = packed(points.T.contiguous(), bits).T.contiguous()
    if kind == "order":
        place = place[torch.randperm(64, generator=generator)]
        stored["weight_g_idx"] = place.to(torch.int32)
    (tmp_path / "config.json").write_text("{}")
    save_file({f"m.{name}": tensor for name, tensor in stored.items()}, tmp_path / "model.safetensors")
    folder = LocalCheckpoint(tmp_path, quantized=True)
    parts = {name: StoredPart(folder, folder.tensors[f"m.{name}"]) for name in stored}
    found = decoded("m", parts)
    assert found.shape == (16, 64)
    expected = (codes - points[:, place]).float() * scale[:, place]
    assert torch.equal(found.read(3, 11), expected[3:11])
    if find_spec("compressed_tensors"):
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        theirs = unpack_from_int32(stored["weight_packed"], bits, torch.Size((16, 64)))
        assert torch.equal(theirs.long(), codes)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llmcompressor"), reason="llm-compressor is not installed")
@pytest.mark.parametrize(("scheme", "label"), [("NVFP4", "W4A4_NVFP4"), ("W4A16", "W4A16")])
def test_what_llm_compressor_makes_is_given_head_and_tower(
    zoo: Zoo, tmp_path: Path, scheme: str, label: str
) -> None:
    source = zoo("qwen3_5", **SIZES)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(scheme=scheme))
    wanted = Quantizer("llm-compressor", tmp_path / "recipe.yaml", tokens=128, chunk=32, time_limit=300)
    with quantized_by(wanted, diagnose(LocalCheckpoint(source)), threads=2) as (made, whole, told):
        assert told.startswith("llm-compressor recipe.yaml (")
        adoption = Adoption(made, tmp_path / "out", str(whole), engine=told)
        write_adopted(adoption)
    assert not made.exists()
    assert not whole.exists()
    opened = open_artifact(tmp_path / "out")
    assert opened.layout.stored_type(opened) == label
    assert all(each.status is Status.PASS for each in check_stored_form(opened))
    view, floats = opened.view(), repaired(source).view()
    assert view.mtp_layers == 1
    assert view.vision is not None
    name = "model.layers.1.mlp.up_proj.weight"
    mine, theirs = (
        read_rows(next(t for t in each if t.name == name).data, 0, 256).float() for each in (view, floats)
    )
    assert 0.02 < float((mine - theirs).norm() / theirs.norm()) < 0.4
    (entry,) = read_receipt(tmp_path / "out").receipt.artifacts
    assert entry.options["engine"] == told
    assert entry.label == label
    assert entry.kind == ("nvfp4" if scheme == "NVFP4" else "int")


def test_a_library_that_is_missing_is_said_with_the_next_step(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(scheme="NVFP4"))
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    assert subprocess.run([python, "-I", "-c", "import torch"], capture_output=True, check=False).returncode
    wanted = Quantizer("llm-compressor", tmp_path / "recipe.yaml", python=python, tokens=64, chunk=32)
    diagnosis = diagnose(LocalCheckpoint(zoo("llama")))
    with pytest.raises(EnvironmentProblem) as caught, quantized_by(wanted, diagnosis):
        pass
    assert "llm-compressor cannot be imported" in caught.value.message
    assert "pip install llmcompressor" in str(caught.value.hint)


def test_each_engine_is_told_in_its_own_way(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="by --recipe FILE"):
        Quantizer("llm-compressor")
    with pytest.raises(UsageProblem, match="by --config NAME"):
        Quantizer("modelopt", tmp_path / "recipe.yaml")
    folder = str(zoo("llama"))
    for words in (["--engine", "modelopt"], ["--config", "NVFP4_DEFAULT_CFG"]):
        assert CliRunner().invoke(cli, ["adopt", folder, *words]).exception is not None
