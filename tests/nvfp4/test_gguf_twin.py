"""NVFP4 in GGUF: what llama.cpp's converter makes of folders, to the byte, and folders that are run by it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from nvfp4_folders import repaired, write
from oracle import toolchain
from safetensors.torch import load_file, save_file
from zoo import ZOO
from zoo_types import Zoo

from qexport.codecs.ggml import is_available
from qexport.errors import InputError
from qexport.formats import tolerance
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.gguf.twin import plan_twin
from qexport.formats.opening import open_artifact
from qexport.onepass.execute import execute
from qexport.onepass.rows import read_rows
from qexport.receipt.verification import Check, Status
from qexport.verification import twin
from qexport.verification.options import VerifyOptions
from qexport.verification.run import verify

GOLDEN = json.loads((Path(__file__).parent / "golden_gguf_nvfp4.json").read_text())
CASES: dict[str, dict[str, Any]] = {
    "qwen3_5": {"scope": "all-linear"},
    "qwen3_5_moe": {"scope": "mlp"},
    "llama3": {"scope": "all-linear"},
}
LAYOUTS = ("modelopt", "compressed-tensors")
needs_llama = pytest.mark.skipif(not is_available(), reason="xllamacpp is not installed")


def digests(path: Path) -> dict[str, str]:
    """Of NVFP4 tensors and their scales: those that a converter has to move as they are."""
    return {
        tensor.name: hashlib.sha256(np.asarray(tensor.data).tobytes()).hexdigest()[:16]
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.tensor_type.name == "NVFP4" or tensor.name.endswith(".scale")
    }


def twin_file(folder: Path, out: Path) -> Path:
    plan = plan_twin(open_artifact(folder))
    execute([plan], out, threads=2)
    assert (out / plan.files[0].name).stat().st_size == plan.size
    return out / plan.files[0].name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_twins_hold_the_bytes_that_the_converter_makes_of_the_folder(
    zoo: Zoo, tmp_path: Path, name: str, layout: str
) -> None:
    write(zoo(name), tmp_path / "folder", layout=layout, **CASES[name])
    assert digests(twin_file(tmp_path / "folder", tmp_path / "twin")) == GOLDEN[f"{name} {layout}"]


@pytest.mark.toolchain
@pytest.mark.skipif(not toolchain.available(), reason=toolchain.NEITHER)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_the_converter_still_does(zoo: Zoo, tmp_path: Path, name: str, layout: str) -> None:
    write(zoo(name), tmp_path / "folder", layout=layout, **CASES[name])
    pre = ZOO[name].pre or "default"
    made = toolchain.convert(tmp_path / "folder", tmp_path / "theirs.gguf", pre=pre)
    assert digests(made) == GOLDEN[f"{name} {layout}"]


@pytest.mark.parametrize("name", ["qwen3_5_moe", "llama3"])
def test_the_type_writes_what_the_folder_has(zoo: Zoo, tmp_path: Path, name: str) -> None:
    """`-q NVFP4` quantizes once: blocks and scales of ModelOpt's layout, everything else in Q8_0."""
    source = repaired(zoo(name)).view()
    write(zoo(name), tmp_path / "folder")
    (plan,) = plan_gguf(source, ["NVFP4"], GgufOptions())
    execute([plan], tmp_path / "file", threads=2)
    file = tmp_path / "file" / plan.files[0].name
    assert digests(file) == digests(twin_file(tmp_path / "folder", tmp_path / "twin"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    folder, mine = open_artifact(tmp_path / "folder").view(), open_artifact(file, like=source).view()
    for tensor in mine:
        if tensor.name.endswith(("up_proj.weight", "down_proj.weight")) and tensor.name.startswith("model."):
            there = next(each for each in folder if each.name == tensor.name)
            rows = tensor.data.matrix_shape[0]
            assert torch.equal(read_rows(tensor.data, 0, rows), read_rows(there.data, 0, rows)), tensor.name


def test_split_files_and_importance(zoo: Zoo, tmp_path: Path) -> None:
    """Scales and weights may come into different shards; their numbers stay the same."""
    view = repaired(zoo("llama3")).view()
    (whole,) = plan_gguf(view, ["NVFP4"], GgufOptions())
    (split,) = plan_gguf(view, ["NVFP4"], GgufOptions(split_max_size=100_000))
    execute([whole, split], tmp_path, threads=2)
    assert len(split.files) > 3
    found: dict[str, str] = {}
    for file in split.files:
        found |= digests(tmp_path / file.name)
    assert found == digests(tmp_path / whole.files[0].name)


def test_fp8_is_told_by_exact_floats(zoo: Zoo, tmp_path: Path) -> None:
    sizes = {"hidden": 128, "intermediate": 128, "head_dim": 128, "linear_dim": 128, "layers": 4}
    execute([plan_fp8(repaired(zoo("qwen3_5", **sizes)))], tmp_path / "folder", threads=2)
    folder = open_artifact(tmp_path / "folder").view()
    mine = open_artifact(twin_file(tmp_path / "folder", tmp_path / "twin"), like=folder).view()
    packed = [each for each in folder if each.data.dtype == "F32" and len(each.shape) == 2]
    assert len(packed) > 10
    for tensor in packed:
        there = next(each for each in mine if each.name == tensor.name)
        rows = tensor.data.matrix_shape[0]
        assert torch.equal(read_rows(tensor.data, 0, rows), read_rows(there.data, 0, rows)), tensor.name


def test_what_llama_cpp_would_compute_without_scales_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    for name, options, words in (
        ("gemma3", GgufOptions(), "without its scale in gemma3 models"),
        ("llama3", GgufOptions(embedding_type="NVFP4"), "token_embd.weight cannot be NVFP4"),
    ):
        with pytest.raises(InputError, match=words):
            plan_gguf(repaired(zoo(name)).view(), ["NVFP4"], options)
    write(zoo("gemma3"), tmp_path / "folder")  # its twin says the same numbers in floats
    assert set(plan_twin(open_artifact(tmp_path / "folder")).details["tensor_types"]) == {"F32", "BF16"}


@needs_llama
def test_a_folder_is_proven_by_its_twin_and_faults_are_found(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the folder's own numbers, so that nothing is lost to rounding but llama.cpp's activations."""
    folder = tmp_path / "good"
    write(zoo("qwen3_5_moe", vision=False), folder)
    view = open_artifact(folder).view()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    options = VerifyOptions(threads=1, n_predict=24, context=512, limits=tolerance.EIGHT_BITS)
    report = verify(folder, view=view, options=options)
    assert report.engine.name == "xllamacpp by GGUF twin"
    assert report.passed, report.verdict
    assert {Check.TWIN, Check.AGREEMENT, Check.MTP_TEXT, Check.MTP_ACCEPTANCE} <= set(report.verified)
    finding = report.finding(Check.TWIN)
    assert finding is not None
    assert finding.data["tensor_types"]["NVFP4"] == 24
    assert not list((tmp_path / "tmp").glob("qexport-twin-*"))  # it is gone

    quick = VerifyOptions(threads=1, n_predict=24, context=512, limits=tolerance.EIGHT_BITS, mtp=False)
    stem = "model.layers.1.mlp"
    for fault in ("scale", "experts"):
        shutil.copytree(folder, tmp_path / fault)
        tensors = load_file(tmp_path / fault / "model.safetensors")
        if fault == "scale":
            for part in ("gate_proj", "up_proj", "down_proj"):
                tensors[f"{stem}.shared_expert.{part}.weight_scale_2"] *= 4
        else:
            for part in ("weight", "weight_scale", "weight_scale_2"):
                names = [f"{stem}.experts.{number}.down_proj.{part}" for number in range(4)]
                moved = [tensors[name] for name in names]
                tensors |= dict(zip(names, moved[1:] + moved[:1], strict=True))
        save_file(tensors, tmp_path / fault / "model.safetensors", metadata={"format": "pt"})
        found = verify(tmp_path / fault, view=view, options=quick)
        assert [each.check for each in found.failures] == [Check.WEIGHTS, Check.AGREEMENT], found.verdict


@needs_llama
def test_the_twin_is_shown_pictures(zoo: Zoo, tmp_path: Path) -> None:
    """Of a folder that transformers would run, too: the twin was asked for."""
    folder = tmp_path / "good"
    execute([plan_fp8(repaired(zoo("qwen3_5", hidden=128, head_dim=128, linear_dim=128)))], folder, threads=1)
    view = open_artifact(folder).view()
    options = VerifyOptions(
        threads=1, n_predict=8, context=512, limits=tolerance.EIGHT_BITS, mtp=False, runtime="twin"
    )
    report = verify(folder, view=view, options=options)
    assert report.engine.name == "xllamacpp by GGUF twin"
    assert report.passed, report.verdict
    assert report.images == "passed", report.findings
    twin_of = report.finding(Check.TWIN)
    assert twin_of is not None
    assert "its vision tower beside it" in twin_of.summary

    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    (name,) = [each for each in tensors if each.endswith("patch_embed.proj.weight")]
    tensors[name] = tensors[name].flip(1).contiguous()  # blue for red
    save_file(tensors, file, metadata={"format": "pt"})
    found = verify(folder, view=view, options=options)
    assert {Check.WEIGHTS, Check.IMAGE_EMBEDDINGS} <= {each.check for each in found.failures}


def test_without_room_or_when_not_wanted_it_is_not_run(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(zoo("qwen3_5_moe", vision=False), tmp_path / "folder")
    off = verify(tmp_path / "folder", view=None, options=VerifyOptions(twin=False))
    assert off.finding(Check.TWIN) is None
    assert off.verdict == "not run"
    monkeypatch.setattr(twin, "has_twins", lambda _: True)
    monkeypatch.setattr(twin, "free_bytes", lambda _: 1000)
    report = verify(tmp_path / "folder", view=None)
    found = report.finding(Check.TWIN)
    assert found is not None
    assert found.status is Status.SKIPPED
    assert "0.0 GB are free for temporary files" in found.summary
    assert report.verdict == "not run"
