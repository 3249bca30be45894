"""What the FP8 tests share: writing a folder, reading it back, the values that a reader finds in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import Repaired, diagnose
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.plan import ArtifactPlan
from qexport.onepass.execute import execute

TILE = 128


def repaired(folder: Path, **options: Any) -> Repaired:
    return diagnose(LocalCheckpoint(folder), **options).repaired


def write_fp8(source: Path, out: Path, mtp: str = "auto", **options: Any) -> ArtifactPlan:
    """The plan, written by the one pass."""
    plan = plan_fp8(repaired(source, mtp=mtp), Fp8Options(**options))
    execute([plan], out)
    return plan


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """Every stored tensor."""
    out: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= load_file(file)
    return out


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same bits, shape and dtype."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.contiguous().view(torch.uint8).equal(other.contiguous().view(torch.uint8))


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor, FP8 ones as ``code * scale`` in float32 by plain torch; scales are left out."""
    stored = tensors_in(folder)
    out: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(("_scale_inv", "_scale")):
            continue
        if tensor.dtype == torch.float8_e4m3fn:
            scale = stored.get(f"{name}_scale_inv", stored.get(f"{name}_scale"))
            assert scale is not None
            wide = scale.float().repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
            out[name] = tensor.float() * wide
        else:
            out[name] = tensor
    return out
