"""FP8_DYNAMIC: any size, one option, and what stands behind it: stored form, other libraries, transformers.

Its bytes and config are llm-compressor's: tests/fp8/test_fp8_block_peer.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import quantized_folders
import torch
from fp8_folders import config_of, repaired, same, tensors_in, write_fp8
from safetensors.torch import save_file
from zoo_types import Zoo

from qexport.errors import UsageProblem
from qexport.formats.fp8.format import FP8
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.opening import open_artifact
from qexport.receipt.verification import Check, Status, Verification
from qexport.verification.options import VerifyOptions
from qexport.verification.run import verify
from qexport.verification.stored_form import check_stored_form

DYNAMIC = "FP8_DYNAMIC"
OPTIONS = VerifyOptions(threads=1, n_predict=8, context=256, time_limit=120)


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_head_tower_and_output_stay_and_are_listed(zoo: Zoo, tmp_path: Path, name: str) -> None:
    source = zoo(name)
    plan = write_fp8(source, tmp_path / "out", scheme=DYNAMIC)
    before, after = tensors_in(source), tensors_in(tmp_path / "out")
    kept = [key for key in before if key.startswith("model.visual.") or key == "lm_head.weight"]
    assert kept
    assert all(same(before[key], after[key]) for key in kept)
    head = {key: tensor for key, tensor in after.items() if key.startswith("mtp.")}
    assert head
    assert {tensor.dtype for tensor in head.values()} == {torch.bfloat16}
    listed = config_of(tmp_path / "out")["quantization_config"]["ignore"]
    assert {"re:.*lm_head$", "re:.*visual.*", "re:.*mtp.*"} <= set(listed)
    assert plan.label == DYNAMIC
    assert plan.details["scheme"] == DYNAMIC
    assert plan.details["layout"] == "compressed-tensors"


def test_sizes_that_tiles_do_not_fit(zoo: Zoo, tmp_path: Path) -> None:
    plan = write_fp8(zoo("llama3"), tmp_path / "out", scheme=DYNAMIC)
    assert {"attn_q", "attn_k", "attn_v"} <= set(plan.details["quantized"])  # k and v have 64 rows
    assert plan.notes == ()
    stored = tensors_in(tmp_path / "out")
    assert stored["model.layers.0.self_attn.k_proj.weight_scale"].shape == (64, 1)


def test_scheme_and_layout() -> None:
    assert Fp8Options().label == "FP8"
    block = Fp8Options(scheme="FP8_BLOCK")
    assert (block.native, block.label) == (False, "FP8_BLOCK")
    assert Fp8Options(layout="compressed-tensors").label == "FP8_BLOCK"
    folders = [FP8.folder(each) for each in (Fp8Options(), block, Fp8Options(scheme=DYNAMIC))]
    assert folders == ["{name}-FP8", "{name}-FP8-CT", "{name}-FP8-dynamic"]
    with pytest.raises(UsageProblem, match="FP8_DYNAMIC is a scheme of compressed-tensors"):
        Fp8Options(layout="native", scheme=DYNAMIC)
    with pytest.raises(UsageProblem, match="no FP8 scheme 'W8A8'") as caught:
        Fp8Options(scheme="W8A8")
    assert caught.value.hint == "One of FP8_BLOCK, FP8_DYNAMIC."


@pytest.mark.slow
def test_proven_and_faults_are_found(zoo: Zoo, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    source, out = zoo("llama", dtype="bf16"), tmp_path / "out"
    write_fp8(source, out, scheme=DYNAMIC)
    quantized_folders.dequantize(out, tmp_path / "plain")
    reference = quantized_folders.reference_of(tmp_path / "plain")

    def checked() -> Verification:
        return verify(out, view=repaired(source).view(), options=OPTIONS, reference=reference)

    report = checked()
    assert report.engine.name == "transformers"
    assert report.file_type == DYNAMIC
    assert report.failures == ()
    (readers,) = [verdict for verdict in report.findings if verdict.check is Check.READERS]
    assert readers.status is Status.PASS
    assert "compressed-tensors" in readers.summary
    assert {"fp8, a scale per row"} == {form for forms in readers.data["read"].values() for form in forms}

    (shard,) = out.glob("*.safetensors")
    turned = {k: t.flip(0).contiguous() if k.endswith("_scale") else t for k, t in tensors_in(out).items()}
    save_file(turned, shard, metadata={"format": "pt"})
    assert Check.AGREEMENT in {verdict.check for verdict in checked().failures}


def test_a_config_that_promises_tiles_is_found(zoo: Zoo, tmp_path: Path) -> None:
    write_fp8(zoo("llama"), tmp_path, scheme=DYNAMIC)
    assert {verdict.status for verdict in check_stored_form(open_artifact(tmp_path))} == {Status.PASS}
    config = config_of(tmp_path)
    config["quantization_config"]["config_groups"][DYNAMIC]["weights"]["strategy"] = "block"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (failure,) = [v for v in check_stored_form(open_artifact(tmp_path)) if v.status is Status.FAIL]
    assert failure.check is Check.DECLARED
    assert "a scale per row, but the config promises fp8, a scale per tile" in failure.summary
