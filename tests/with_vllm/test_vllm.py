"""vLLM itself on quantized folders: `make test-vllm`. Outside the default suite: it wants a venv of 4 GB.

`QEXPORT_VLLM_PYTHON` names the Python that has it. On a CPU, kernels that are not there are replaced by
dequantizing ones (`cpu_kernels.py`); the loaders are vLLM's own, and strict.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import quantized_folders
import zoo
from safetensors.torch import load_file, save_file

from qexport.verify.folder_runtimes import ENGINES, FolderRuntime
from qexport.verify.reference import reference_from_folder
from qexport.verify.runtime import Failure, RuntimeFailure, Settings

PYTHON = os.environ.get("QEXPORT_VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="QEXPORT_VLLM_PYTHON names no Python (make test-vllm)"),
]
# What vLLM's CPU kernels take: heads of 128, and for FP8 blocks of 128.
SIZES = {"head_dim": 128, "linear_dim": 128, "hidden": 256, "intermediate": 256, "shards": 1}
SETTINGS = Settings(context=512, threads=1, time_limit=300)
IDS = [1, 5, 9, 33, 77, 120, 300, 401, 17, 55, 206, 440, 3, 88, 147, 250, 6, 311, 404, 29, 71, 133, 222, 345]
# Mean |difference of log-probability| of bf16 arithmetic to float32 on the unquantized models themselves:
# dense 0.014, experts 0.022 (near-ties of the router). Twice that.
NOISE = {"qwen3_5": 0.03, "qwen3_5_moe": 0.05}


@pytest.fixture(scope="module")
def runtime():
    return FolderRuntime(
        ENGINES["vllm"], Path(str(PYTHON)), first=[Path(__file__).with_name("cpu_kernels.py")]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out, made = tmp_path_factory.mktemp("vllm"), {}

    def make(name: str, kind: str) -> Path:
        if (name, kind) not in made:
            source = out / name
            if not source.exists():
                zoo.build(name, source, **SIZES)
            made[name, kind] = quantized_folders.quantize(source, out / f"{name}-{kind}", kind)
        return made[name, kind]

    return make


@pytest.mark.parametrize("kind", ["plain", *quantized_folders.KINDS])
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_its_numbers_are_the_formats(folder, runtime, name, kind):
    """The same log-probabilities as transformers gives for the weights dequantized by hand."""
    path = folder(name, "fp8" if kind == "plain" else kind)
    plain = path.with_name(path.name + "-plain")
    with runtime.open(plain if kind == "plain" else path, SETTINGS) as session:
        assert session.facts["strict"]
        given = session.score(IDS, 1)
        answer = session.generate(IDS[:6], n_predict=8, n_probs=3)
    expected = reference_from_folder(plain).score(IDS, 1)
    gaps = [abs(step.logprob - other.logprob) for step, other in zip(given, expected, strict=True)]
    mean = sum(gaps) / len(gaps)
    print(f"{name} {kind}: mean {mean:.4f}, largest {max(gaps):.4f}")
    assert mean < NOISE[name]
    assert len(answer.tokens) == 8
    assert [step.top[0][0] for step in answer.steps] == list(answer.tokens)


@pytest.mark.parametrize("kind", quantized_folders.KINDS)
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_the_head_loads_strictly(folder, runtime, name, kind):
    with runtime.open(
        folder(name, kind), Settings(draft_max=1, context=512, threads=1, time_limit=300)
    ) as session:
        assert session.facts["strict"]


@pytest.mark.parametrize("break_it", ["missing", "scales", "unlisted"])
def test_a_broken_head_does_not_load(folder, runtime, tmp_path, break_it):
    """What vLLM would load in silence, were it not told to keep account."""
    source = folder("qwen3_5", "ct-fp8" if break_it == "unlisted" else "fp8")
    for file in source.glob("*.json"):
        content = file.read_text()
        (tmp_path / file.name).write_text(content.replace('"re:.*mtp.*"', '"lm_head"'))
    tensors = load_file(source / "model.safetensors")
    ending = {"missing": "", "scales": "_scale_inv", "unlisted": "no tensor"}[break_it]
    kept = {k: v for k, v in tensors.items() if not (k.startswith("mtp.") and k.endswith(ending))}
    save_file(kept, tmp_path / "model.safetensors")
    assert (len(kept) == len(tensors)) == (break_it == "unlisted")
    with pytest.raises(RuntimeFailure) as caught:
        runtime.open(tmp_path, Settings(draft_max=1, context=512, threads=1, time_limit=300))
    assert caught.value.kind is Failure.REFUSED
    assert "not initialized from checkpoint" in caught.value.message
