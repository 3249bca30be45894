"""What mlx-vlm's own conversion makes of zoo models: goldens, made anew by `python tests/mlx/vlm_bench.py`.

    QEXPORT_MLX_VLM_PYTHON=/path/to/python python tests/mlx/vlm_bench.py [zoo name ...]

The interpreter is one that has mlx-vlm; ours, if it does. A golden has a hash for each tensor: of a model
that is quantized to 4 bits, and of one that is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from child_jobs import ask
from mlx_bench import config_of, fixed, repaired, tensors_of
from oracle.summary import source_digest
from zoo import build

from qexport.doctor import Repaired

PYTHON = os.environ.get("QEXPORT_MLX_VLM_PYTHON") or (sys.executable if find_spec("mlx_vlm") else "")
needs_mlx_vlm = pytest.mark.skipif(
    not PYTHON, reason="mlx-vlm is not installed, and QEXPORT_MLX_VLM_PYTHON names no interpreter"
)
GOLDENS = Path(__file__).with_name("golden_mlx_vlm")
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_5": {},
    "qwen3_5_moe": {},
    "qwen3_vl": {},
    "qwen3_vl_moe": {},
    "gemma3": {"form": "wrapper", "vision": True},
}
"""Models with a tower, and what they are built with."""
FORMS: dict[str, dict[str, Any]] = {"4-bit": {"quantize": True, "q_bits": 4}, "bf16": {}}


def mlx_vlm(work: str, jobs: Iterable[list[Any]]) -> list[dict[str, Any]]:
    """Results of jobs in a child process."""
    return ask(PYTHON, Path(__file__).with_name("vlm_child.py"), work, jobs)


def converted(model: Repaired, work: Path) -> dict[str, Path]:
    """The folders that mlx-vlm makes of a model, by form."""
    source = fixed(model, work / "source")
    config = config_of(source)
    if "mm_tokens_per_image" in config:  # which it looks for elsewhere, and has 256 otherwise
        config["text_config"]["mm_tokens_per_image"] = config["mm_tokens_per_image"]
        (source / "config.json").write_text(json.dumps(config))
    results = mlx_vlm("convert", [[str(source), str(work / form), FORMS[form]] for form in FORMS])
    assert results == [{}] * len(FORMS), results
    return {form: work / form for form in FORMS}


def hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Dtype, shape and a hash of each tensor."""
    return {name: _hash(tensors[name]) for name in sorted(tensors)}


def _hash(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    shape = "x".join(map(str, tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape} {digest.hexdigest()[:16]}"


def golden(name: str) -> dict[str, Any]:
    """The one in the repository."""
    found: dict[str, Any] = json.loads((GOLDENS / f"{name}.json").read_text())
    return found


def main() -> None:
    version = "import importlib.metadata as m; print(m.version('mlx-vlm'))"
    ran = subprocess.run([PYTHON, "-c", version], capture_output=True, text=True, check=True)
    GOLDENS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as work:
            folder = build(name, Path(work) / name, **MODELS[name])
            made = converted(repaired(folder), Path(work))
            found = {"source": source_digest(folder), "mlx-vlm": ran.stdout.strip()}
            found |= {form: hashes(tensors_of(path)) for form, path in made.items()}
            found["quantization"] = config_of(made["4-bit"])["quantization"]
        (GOLDENS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
