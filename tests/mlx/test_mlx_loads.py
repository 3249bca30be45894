"""mlx-lm loads what is written, strictly, and generates; configs that its readers misread without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlx_bench import config_of, mlx_lm, needs_mlx_lm, repaired, tensors_of, written
from zoo_types import Zoo

from qexport.formats.mlx.options import MlxOptions

CASES: dict[str, tuple[str, dict[str, Any], MlxOptions]] = {
    "hybrid": ("qwen3_5", {}, MlxOptions(bits=6, mtp=("drafter", "mtplx", "vllm-mlx"))),
    "hybrid, text only": ("qwen3_5_text", {}, MlxOptions(bits=5)),
    "hybrid, embedded head": ("qwen3_5", {"shards": 1}, MlxOptions(bits=6, mtp=("embedded",), mtp_bits=8)),
    "hybrid, tied, odd widths": ("qwen3_5_tied", {}, MlxOptions(bits=4)),
    "experts": ("qwen3_5_moe", {}, MlxOptions(bits=4, mtp=("mtplx",), mtp_bits=4)),
    "experts one by one": ("qwen3_5_moe_text", {}, MlxOptions(mode="nvfp4")),
    "llama": ("llama", {}, MlxOptions(bits=8)),
    "llama, as saved by transformers 5": ("llama3", {}, MlxOptions(bits=8)),
    "llama, odd widths": ("smollm", {}, MlxOptions(bits=4)),
    "mistral": ("mistral", {}, MlxOptions(mode="mxfp8")),
    "qwen2": ("qwen2", {}, MlxOptions(mode="mxfp4")),
    "qwen3": ("qwen3", {}, MlxOptions(recipe="mixed_4_6")),
    "qwen3 experts": ("qwen3_moe", {}, MlxOptions(bits=3, group_size=32)),
    "qwen3 experts, as saved by transformers 5": ("qwen3_moe", {"style": "saved"}, MlxOptions(bits=4)),
    "qwen3 with a tower": ("qwen3_vl", {}, MlxOptions(bits=5)),
    "gemma": ("gemma3", {}, MlxOptions(bits=4)),
    "gemma, as saved by transformers 5": ("gemma3", {"style": "saved"}, MlxOptions(bits=4)),
}


@needs_mlx_lm
@pytest.mark.slow
def test_loads_and_generates(zoo: Zoo, tmp_path: Path) -> None:
    """All cases in one test: mlx-lm is imported once."""
    trunks: list[Path] = []
    for number, (name, build, options) in enumerate(CASES.values()):
        folders, _ = written(repaired(zoo(name, **build)), options, tmp_path / str(number))
        trunks.append(folders[0])
    results = mlx_lm("load", [[str(trunk), "Hello", 3] for trunk in trunks])
    found = {case: judged(*pair) for case, pair in zip(CASES, zip(trunks, results, strict=True), strict=True)}
    assert found == dict.fromkeys(CASES, "loaded, generated")


def judged(folder: Path, result: dict[str, Any]) -> str:
    """Strict loading refuses what is missing; nothing else may be there but head and tower."""
    if "error" in result:
        return str(result["error"])
    stored = [name for name in tensors_of(folder) if "mtp." not in name and "vision" not in name]
    quantized = {name.removesuffix(".scales") for name in stored if name.endswith(".scales")}
    config = config_of(folder)["quantization"]
    if result["parameters"] != len(stored) or set(result["bits"]) != quantized:
        return "not every tensor is used"
    if any(bits != config.get(path, config)["bits"] for path, bits in result["bits"].items()):
        return "bits are not those of the config"
    return "loaded, generated" if result["finite"] else "values that are not finite"


@needs_mlx_lm
@pytest.mark.slow
def test_same_numbers_whatever_the_config_looks_like(zoo: Zoo, tmp_path: Path) -> None:
    """The published and the saved form of one model: RoPE and experts in other words, the same logits."""
    jobs = []
    for name, shared in {
        "llama3": {},
        "qwen3": {},
        "qwen3_moe": {},
        "gemma3": {},
        "qwen3_5_text": {},
    }.items():
        for style in ("published", "saved"):
            folders, _ = written(
                repaired(zoo(name, style=style, **shared)), MlxOptions(bits=8), tmp_path / f"{name}-{style}"
            )
            jobs.append([str(folders[0]), [5, 6, 7, 8, 9, 10, 11, 12]])
    results = mlx_lm("logits", jobs)
    assert not [result for result in results if "error" in result]
    for one, other in zip(results[::2], results[1::2], strict=True):
        assert one == other
