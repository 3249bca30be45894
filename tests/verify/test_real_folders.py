"""Real runtimes on real folders: transformers on native FP8, mlx-lm on what mlx-lm converts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import quantized_folders
import zoo
from safetensors.torch import load_file, save_file

from qexport.children.failure import Failure, RuntimeFailure
from qexport.formats.registry import tolerance
from qexport.receipt.verification import Check, Status
from qexport.verification.folder_runtimes import folder_runtime
from qexport.verification.options import VerifyOptions
from qexport.verification.run import verify
from qexport.verification.runtime import Settings

pytestmark = pytest.mark.slow
SIZES = {"head_dim": 128, "linear_dim": 128, "hidden": 128, "intermediate": 128, "layers": 4, "heads": 2}
SIZES |= {"kv_heads": 1, "key_heads": 1, "value_heads": 2, "vision": False, "shards": 1, "mtp": True}
OPTIONS = VerifyOptions(threads=1, n_predict=12, context=512, time_limit=120)
SETTINGS = Settings(threads=1, context=512, time_limit=120)
IDS = [1, 5, 9, 33, 77, 120, 300, 401, 17, 55, 206, 440, 3, 88, 147, 250]


def mean_gap(steps, expected) -> float:
    gaps = [abs(step.logprob - other.logprob) for step, other in zip(steps, expected, strict=True)]
    return sum(gaps) / len(gaps)


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_transformers_reads_native_fp8(tmp_path, name):
    source = zoo.build(name, tmp_path / "source", **SIZES)
    path = quantized_folders.quantize(source, tmp_path / "fp8", "fp8")
    reference = quantized_folders.reference_of(tmp_path / "fp8-plain", dtype="bfloat16")
    report = verify(path, view=None, options=OPTIONS, reference=reference)
    assert report.engine.name == "transformers"
    assert report.verdict == "passed, without tokens, ends, template_kept, mtp_loads"
    assert Check.USED in report.verified
    assert Check.TEMPLATE in report.verified
    with folder_runtime("transformers").open(path, SETTINGS) as session:
        assert mean_gap(session.score(IDS, 1), reference.score(IDS, 1)) < 0.03  # it keeps A_log in float32


def test_a_head_behind_the_trunk_is_none_of_transformers_business_at_any_depth():
    """Of GLM it leaves out layers 46 and 92, which are those of the published models."""
    from transformers import Glm4MoeConfig

    from qexport.children.programs.engine_transformers import of_head

    config = Glm4MoeConfig(num_hidden_layers=3, num_nextn_predict_layers=1)
    heads = [n for n in range(6) if of_head(f"model.layers.{n}.eh_proj.weight", config)]
    assert heads == [3]
    config.num_nextn_predict_layers = 0
    assert not of_head("model.layers.3.eh_proj.weight", config)


def test_transformers_says_what_is_missing(tmp_path):
    """It would fill the hole with random numbers, log a table, and go on; of scales it says nothing."""
    source = zoo.build("qwen3_5", tmp_path / "source", **SIZES)
    path = quantized_folders.quantize(source, tmp_path / "fp8", "fp8")
    tensors = load_file(path / "model.safetensors")
    norm = tensors.pop("model.language_model.layers.2.input_layernorm.weight")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeFailure) as caught:
        folder_runtime("transformers").open(path, SETTINGS)
    assert caught.value.kind is Failure.REFUSED
    assert "1 missing keys, the first model.layers.2.input_layernorm.weight" in caught.value.message
    tensors["model.language_model.layers.2.input_layernorm.weight"] = norm
    del tensors["model.language_model.layers.2.mlp.down_proj.weight_scale_inv"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    report = verify(path, view=None, options=OPTIONS)
    assert report.verdict == "failed: file"
    assert "layers.2.mlp.down_proj.weight is F8_E4M3 and has no scale" in report.failures[0].summary


def test_transformers_dequantizes_compressed_tensors(tmp_path):
    if find_spec("compressed_tensors") is None:
        pytest.skip("compressed-tensors is not installed")
    source = zoo.build("qwen3_5", tmp_path / "source", **SIZES)
    for kind in ("ct-fp8", "ct-nvfp4"):
        path = quantized_folders.quantize(source, tmp_path / kind, kind)
        reference = quantized_folders.reference_of(tmp_path / f"{kind}-plain", dtype="bfloat16")
        with folder_runtime("transformers").open(path, SETTINGS) as session:
            mean = mean_gap(session.score(IDS, 1), reference.score(IDS, 1))
            # In the FP8 layout activations are rounded, too; in both A_log may stay in float32.
            assert mean < (0.2 if kind == "ct-fp8" else 0.03)


@pytest.fixture(scope="module")
def mlx_folder(tmp_path_factory):
    if find_spec("mlx_lm") is None:
        pytest.skip("mlx-lm is not installed")
    out = tmp_path_factory.mktemp("mlx")
    source = zoo.build("llama3", out / "source")
    convert = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", str(source)]
    convert += ["--mlx-path", str(out / "tiny-8bit"), "--quantize", "--q-bits", "8", "--q-group-size", "32"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(convert, check=True, capture_output=True, env=offline)
    return out / "tiny-8bit"


def test_mlx_lm_reads_its_own(mlx_folder):
    reference = quantized_folders.reference_of(mlx_folder.with_name("source"))
    ids = [token % 100 for token in IDS]  # mlx reads on behind the end of its embedding
    # Random weights: near-ties everywhere, which a trained model does not have.
    options = replace(OPTIONS, limits=tolerance("MLX-5bit"))
    report = verify(mlx_folder, view=None, options=options, reference=reference)
    assert report.engine.name == "mlx-lm"
    assert report.file_type == "MLX-8bit"
    assert report.verdict == "passed, without tokens, ends, template_kept"
    with folder_runtime("mlx-lm").open(mlx_folder, SETTINGS) as session:
        assert session.facts["strict"]
        answer = session.generate(ids, n_predict=4, n_probs=3)
        again = session.score([*ids, *answer.tokens], len(ids))
    for step, other in zip(answer.steps, again, strict=True):
        assert step.top[0] == (step.token, step.logprob)
        assert abs(step.logprob - other.logprob) < 0.1  # one token at a time, or all at once


def test_mlx_lm_is_strict(mlx_folder, tmp_path):
    tensors = load_file(mlx_folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.biases"]
    for file in mlx_folder.glob("*.json*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors.index.json").unlink()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "mlx"})
    with pytest.raises(RuntimeFailure) as caught:
        folder_runtime("mlx-lm").open(tmp_path, SETTINGS)
    assert caught.value.kind is Failure.REFUSED
    assert "layers.1.mlp.up_proj.biases" in caught.value.message


@pytest.mark.parametrize("place", ["model_file", "auto_map", "tokenizer"])
def test_no_code_out_of_the_folder_is_run(mlx_folder, tmp_path, place):
    for file in mlx_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    name = "tokenizer_config.json" if place == "tokenizer" else "config.json"
    config = json.loads((tmp_path / name).read_text())
    if place == "model_file":
        config["model_file"] = "own.py"
    else:
        config["auto_map"] = {"AutoTokenizer": ["own.T", None], "AutoConfig": "own.C"}
        config |= {"AutoTokenizer": "own.T", "tokenizer_class": "T"} if place == "tokenizer" else {}
    (tmp_path / name).write_text(json.dumps(config))
    report = verify(tmp_path, view=None, options=replace(OPTIONS, reference=False))
    if place == "model_file":
        assert report.finding(Check.LOADS).status is Status.FAIL
    assert not (tmp_path / "ran").exists()


def test_the_file_limit_of_ours_stays(mlx_folder):
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with folder_runtime("mlx-lm", Path(sys.executable)).open(mlx_folder, SETTINGS):
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
