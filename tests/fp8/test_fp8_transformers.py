"""transformers reads native folders (on a CPU it dequantizes) and computes with exactly our numbers."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from fp8_folders import config_of, dequantized, write_fp8
from safetensors.torch import save_file
from zoo_types import Zoo

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow


def plain_copy(folder: Path, out: Path) -> Path:
    """The same values in bfloat16, in a folder without any quantization."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = config_of(folder)
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    rounded = {
        name: tensor.to(torch.bfloat16) if tensor.ndim > 1 else tensor
        for name, tensor in dequantized(folder).items()
    }
    save_file(rounded, out / "model.safetensors", metadata={"format": "pt"})
    return out


def logits(folder: Path, auto: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, auto).from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(
    ("name", "options", "auto"),
    [
        ("qwen3_5", {}, "AutoModelForImageTextToText"),
        ("qwen3_5", {"form": "flat", "vision": False}, "AutoModelForCausalLM"),
        ("qwen3_5_moe", {}, "AutoModelForImageTextToText"),
        ("qwen3_5_moe_text", {}, "AutoModelForCausalLM"),
        ("llama3", {}, "AutoModelForCausalLM"),
        ("qwen3_moe", {}, "AutoModelForCausalLM"),
    ],
)
def test_logits(zoo: Zoo, tmp_path: Path, name: str, options: dict[str, Any], auto: str) -> None:
    write_fp8(zoo(name, **options), tmp_path / "fp8")
    plain = plain_copy(tmp_path / "fp8", tmp_path / "plain")
    ours, expected = logits(tmp_path / "fp8", auto), logits(plain, auto)
    assert torch.isfinite(expected).all()
    assert torch.equal(ours, expected)
    assert not torch.equal(expected, logits(zoo(name, **options), auto))
