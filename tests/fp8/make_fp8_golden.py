"""Regenerates tests/fp8/golden_fp8_block.json: what llm-compressor's model_free_ptq writes of zoo models.

    PYTHONPATH=tests python tests/fp8/make_fp8_golden.py

For each case the digest of all tensors and the quantization_config. A test runs it anew, in a child, with
cases to do and a folder to leave their files in.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import zoo
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden_fp8_block.json"
PLAIN = ["re:.*lm_head$", "re:.*embed_tokens$"]
DELTA = [*PLAIN, *(rf"re:.*linear_attn\.{part}$" for part in ("in_proj_a", "in_proj_b", "conv1d"))]
ROUTED = [*DELTA, r"re:.*mlp\.gate$", r"re:.*mlp\.shared_expert_gate$"]
WHOLE = ["re:.*visual.*", "re:.*mtp.*"]

BLOCK, DYNAMIC = "FP8_BLOCK", "FP8_DYNAMIC"
CASES: dict[str, tuple[str, dict[str, Any], list[str], str]] = {
    "dense": ("qwen3_5", {}, [*DELTA, *WHOLE], BLOCK),
    "fused experts": ("qwen3_5_moe", {}, [*ROUTED, *WHOLE], BLOCK),
    "single experts": ("qwen3_5_moe_text", {"experts": 3}, ROUTED, BLOCK),
    "llama": ("llama", {"dtype": "bf16"}, PLAIN, BLOCK),
    "llama float16": ("llama", {}, PLAIN, BLOCK),
    "qwen2 float32": ("qwen2", {}, PLAIN, BLOCK),
    "dynamic dense": ("qwen3_5", {}, [*DELTA, *WHOLE], DYNAMIC),
    "dynamic fused experts": ("qwen3_5_moe", {}, [*ROUTED, *WHOLE], DYNAMIC),
    "dynamic odd sizes": ("llama3", {}, PLAIN, DYNAMIC),
    "dynamic float16": ("llama", {}, PLAIN, DYNAMIC),
    "dynamic float32": ("qwen2", {}, PLAIN, DYNAMIC),
}
"""Zoo model, its options, what is not to be quantized, and the scheme."""


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def make(case: str, out: Path) -> dict[str, Any]:
    """Build the case's model, quantize it into ``out``, and say what came out."""
    from llmcompressor import model_free_ptq

    name, options, ignore, scheme = CASES[case]
    with tempfile.TemporaryDirectory() as work:
        source = zoo.build(name, Path(work), **options)
        model_free_ptq(source, out, scheme=scheme, ignore=ignore, max_workers=1, device="cpu")
    tensors: dict[str, torch.Tensor] = {}
    for file in out.glob("*.safetensors"):
        tensors |= load_file(file)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    return {"tensors": len(tensors), "sha256": digest(tensors), "config": config}


def main() -> None:
    if len(sys.argv) > 1:
        *cases, target = sys.argv[1:]
        for case in cases:
            make(case, Path(target) / case)
        return
    with tempfile.TemporaryDirectory() as work:
        made = {case: make(case, Path(work) / case) for case in CASES}
    versions = {package: version(package) for package in ("llmcompressor", "compressed-tensors")}
    GOLDEN.write_text(json.dumps({"versions": versions, "cases": made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
