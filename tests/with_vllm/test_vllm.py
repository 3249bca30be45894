"""vLLM itself on quantized folders: `make test-vllm`. Outside the default suite: it wants a venv of 4 GB.

`QEXPORT_VLLM_PYTHON` names the Python that has it. On a CPU, kernels that are not there are replaced by
dequantizing ones (`cpu_kernels.py`); the loaders are vLLM's own, and strict.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import quantized_folders
import zoo
from safetensors.torch import load_file, save_file

from qexport.children.failure import Failure, RuntimeFailure
from qexport.evidence.products import InputProducts
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4
from qexport.formats.opening import open_artifact
from qexport.onepass.execute import execute
from qexport.recipe.choice import ModelChoice
from qexport.run.adopt import Adoption, write_adopted
from qexport.run.model import examine
from qexport.verification.folder_runtimes import ENGINES, FolderRuntime
from qexport.verification.reference import reference_from_view
from qexport.verification.runtime import Settings

sys.path.append(str(Path(__file__).parents[1] / "nvfp4"))
sys.path.append(str(Path(__file__).parents[1] / "artifacts"))
import packed_folders
from stripped import strip

PYTHON = os.environ.get("QEXPORT_VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="QEXPORT_VLLM_PYTHON names no Python (make test-vllm)"),
]
# What vLLM's CPU kernels take: heads of 128, and for FP8 blocks of 128.
SIZES = {"head_dim": 128, "linear_dim": 128, "hidden": 256, "intermediate": 256, "shards": 1}
SETTINGS = Settings(context=512, threads=1, time_limit=300)
IDS = [1, 5, 9, 33, 77, 120, 300, 401, 17, 55, 206, 440, 3, 88, 147, 250, 6, 311, 404, 29, 71, 133, 222, 345]
# Mean |difference of log-probability| of vLLM in bf16 to transformers in float32: 0.020 seen, dense.
# Experts of random weights stand near ties, and a router that falls the other way moves whole answers (0.13
# seen, of bf16 transformers as well): of those, vLLM is compared with itself on the dequantized weights.
NOISE = 0.04
SAME = 1e-3


def by_layer(repaired, layout: str):
    """As a choice for a size may be: layer 0 plain, layer 1 all FP8, attention FP8, the other MLPs NVFP4."""
    options = Nvfp4Options(layout=layout, scope="all-linear")
    assignment = plan_nvfp4(repaired, options).assignment

    def word(tensor: str) -> str:
        layer = tensor.partition(".layers.")[2].partition(".")[0]
        if layer in ("", "0"):
            return "plain"
        return "F8_E4M3" if layer == "1" or "_attn" in tensor else "NVFP4"

    types = {tensor: word(tensor) for tensor in assignment.types}
    return plan_nvfp4(repaired, replace(options, types_from=replace(assignment, types=types)))


PACKED = {"awq": packed_folders.awq_folder, "gptq": packed_folders.gptq_folder}
OURS = {
    "fp8": lambda repaired: plan_fp8(repaired, Fp8Options()),
    "fp8, head in bf16": lambda repaired: plan_fp8(repaired, Fp8Options(mtp_bf16=True)),
    "fp8, compressed-tensors": lambda repaired: plan_fp8(repaired, Fp8Options(layout="compressed-tensors")),
    "nvfp4": lambda repaired: plan_nvfp4(repaired, Nvfp4Options()),
    "nvfp4, all": lambda repaired: plan_nvfp4(repaired, Nvfp4Options(scope="all-linear")),
    "nvfp4, compressed-tensors": lambda repaired: plan_nvfp4(
        repaired, Nvfp4Options(layout="compressed-tensors", scope="all-linear")
    ),
    "nvfp4, W4A4": lambda repaired: plan_nvfp4(repaired, Nvfp4Options(scheme="NVFP4", scope="all-linear")),
    "nvfp4, W4A4, modelopt": lambda repaired: plan_nvfp4(
        repaired, Nvfp4Options(scheme="NVFP4", layout="modelopt", scope="all-linear")
    ),
    "nvfp4, W4A4, modelopt, with FP8 attention": lambda repaired: plan_nvfp4(
        repaired, Nvfp4Options(scheme="NVFP4", layout="modelopt", scope="nvidia")
    ),
    "nvfp4, with FP8 attention": lambda repaired: plan_nvfp4(repaired, Nvfp4Options(scope="nvidia")),
    "nvfp4 and FP8 by layer": lambda repaired: by_layer(repaired, "modelopt"),
    "nvfp4 and FP8 by layer, compressed-tensors": lambda repaired: by_layer(repaired, "compressed-tensors"),
}


@pytest.fixture(scope="module")
def runtime():
    return FolderRuntime(
        ENGINES["vllm"], Path(str(PYTHON)), first=[Path(__file__).with_name("cpu_kernels.py")]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder by (model, kind): by hand, or as qexport writes it; and its dequantized twin."""
    out = tmp_path_factory.mktemp("vllm")

    def make(name: str, kind: str) -> tuple[Path, Path]:
        source, path = out / name, out / f"{name}-{kind}"
        if not source.exists():
            zoo.build(name, source, **SIZES)
        if path.exists():
            return path, path.with_name(path.name + "-plain")
        if kind in OURS:
            repaired = examine(ModelChoice(str(source)), download=False).repaired
            # Scales of inputs are stored and loaded; what stands in for vLLM's kernels rounds no activations.
            with closing(InputProducts(repaired.view(), np.array([IDS], np.int32))) as products:
                execute([OURS[kind](repaired)], path, products=products)
        else:
            quantized_folders.quantize(source, path, kind)
        return path, quantized_folders.dequantize(path, path.with_name(path.name + "-plain"))

    return make


def mean_gap(given, expected) -> float:
    gaps = [abs(step.logprob - other.logprob) for step, other in zip(given, expected, strict=True)]
    return sum(gaps) / len(gaps)


@pytest.mark.parametrize("kind", [*quantized_folders.KINDS, *OURS])
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_it_loads_with_its_head_and_has_the_formats_numbers(made, runtime, name, kind):
    """vLLM's log-probabilities are those of the weights that the formulas of the format give."""
    path, plain = made(name, kind)
    with runtime.open(path, replace(SETTINGS, draft_max=1)) as session:
        assert session.facts["strict"]
    with runtime.open(path, SETTINGS) as session:
        given = session.score(IDS, 1)
        answer = session.generate(IDS[:6], n_predict=8, n_probs=3)
    assert [step.top[0][0] for step in answer.steps] == list(answer.tokens)
    if name == "qwen3_5":
        mean = mean_gap(given, quantized_folders.reference_of(plain).score(IDS, 1))
        print(f"{name} {kind}: mean {mean:.4f}")
        assert mean < NOISE
    else:
        with runtime.open(plain, SETTINGS) as session:
            mean = mean_gap(given, session.score(IDS, 1))
        print(f"{name} {kind}: mean {mean:.6f} to itself")
        assert mean < SAME


@pytest.mark.parametrize("kind", quantized_folders.KINDS)
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_an_adopted_folder_loads_with_head_and_tower_counted(tmp_path, name, kind):
    """Of a folder that has lost both; and not without a tensor of either."""
    base, lost, out = (tmp_path / name for name in ("base", "lost", "out"))
    zoo.build(name, base, **SIZES)
    quantized_folders.quantize(base, lost, kind)
    write_adopted(Adoption(strip(lost), out, str(base)))
    _counts_head_and_tower(out)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_integers_that_others_packed_are_adopted_and_read_as_we_read_them(tmp_path, runtime, name, kind):
    """By vLLM's own kernels for processors, which it has none of for experts; the lists are those that
    adopting makes."""
    base, out = tmp_path / "base", tmp_path / "out"
    zoo.build(name, base, **SIZES)
    packed = PACKED[kind](base)
    packed.drop(r"^mtp\.|^model\.visual\.")
    del packed.config["vision_config"]
    for key in ("modules_to_not_convert", "dynamic"):
        packed.config["quantization_config"].pop(key, None)
    write_adopted(Adoption(packed.write(tmp_path / "lost"), out, str(base)))
    _counts_head_and_tower(out)
    if name == "qwen3_5_moe":
        return
    with runtime.open(out, SETTINGS) as session:
        given = session.score(IDS, 1)
    mean = mean_gap(given, reference_from_view(open_artifact(out).view()).score(IDS, 1))
    print(f"{kind}: mean {mean:.4f}")
    assert mean < NOISE


def _counts_head_and_tower(out):
    counted = load_whole(out)
    whole = sum(name.startswith("model.visual.") for name in load_file(out / GRAFTED))
    assert 0 < counted.pop("tower") <= whole  # q, k and v are one parameter
    assert all(counted.values())
    assert any("MTP" in name for name in counted)


@pytest.mark.parametrize("name", ["mtp.fc.weight", "model.visual.blocks.0.attn.proj.weight"])
def test_an_adopted_folder_without_a_tensor_of_its_base_does_not_load(tmp_path, name):
    base, lost, out = (tmp_path / name for name in ("base", "lost", "out"))
    zoo.build("qwen3_5", base, **SIZES)
    quantized_folders.quantize(base, lost, "modelopt-nvfp4")
    write_adopted(Adoption(strip(lost), out, str(base)))
    tensors = load_file(out / GRAFTED)
    del tensors[name]
    save_file(tensors, out / GRAFTED)
    index = json.loads((out / INDEX).read_text())
    del index["weight_map"][name]
    (out / INDEX).write_text(json.dumps(index))
    with pytest.raises(AssertionError, match="not initialized from checkpoint"):
        load_whole(out)


GRAFTED, INDEX = "model-00002-of-00002.safetensors", "model.safetensors.index.json"


def load_whole(folder):
    """Parameters that vLLM took out of it, by part."""
    words = [str(PYTHON), str(Path(__file__).with_name("load_whole.py")), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["nvfp4, W4A4", "nvfp4, W4A4, modelopt"])
def test_w4a4_without_a_scale_of_inputs_does_not_load(made, runtime, tmp_path, kind):
    """vLLM's account has those scales in it."""
    source, _ = made("qwen3_5_moe", kind)
    for file in source.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    tensors = load_file(source / "model.safetensors")
    (lost,) = [k for k in tensors if "layers.3.self_attn.o_proj.input_" in k]
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeFailure) as caught:
        runtime.open(tmp_path, SETTINGS)
    assert caught.value.kind is Failure.REFUSED
    assert "not initialized from checkpoint" in caught.value.message


@pytest.mark.parametrize("break_it", ["missing", "scales", "unlisted"])
def test_a_broken_head_does_not_load(made, runtime, tmp_path, break_it):
    """What vLLM would load in silence, were it not told to keep account."""
    source, _ = made("qwen3_5", "ct-fp8" if break_it == "unlisted" else "fp8")
    for file in source.glob("*.json"):
        content = file.read_text()
        (tmp_path / file.name).write_text(content.replace('"re:.*mtp.*"', '"lm_head"'))
    tensors = load_file(source / "model.safetensors")
    ending = {"missing": "", "scales": "_scale_inv", "unlisted": "no tensor"}[break_it]
    kept = {k: v for k, v in tensors.items() if not (k.startswith("mtp.") and k.endswith(ending))}
    save_file(kept, tmp_path / "model.safetensors")
    assert (len(kept) == len(tensors)) == (break_it == "unlisted")
    with pytest.raises(RuntimeFailure) as caught:
        runtime.open(tmp_path, replace(SETTINGS, draft_max=1))
    assert caught.value.kind is Failure.REFUSED
    assert "not initialized from checkpoint" in caught.value.message
