"""What the NVFP4 tests share: writing a folder, reading it back, its modules and their values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from nvfp4_reading import raw

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import Repaired, diagnose
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4
from qexport.formats.plan import ArtifactPlan
from qexport.onepass.execute import execute

LEVELS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@dataclass(frozen=True)
class Matrix:
    """A quantized module as it is stored; ``shared`` is the number to multiply by."""

    packed: torch.Tensor
    scale: torch.Tensor
    shared: float

    @property
    def values(self) -> torch.Tensor:
        """By the formula of the format, in plain torch."""
        codes = torch.stack([self.packed & 15, self.packed >> 4], -1).flatten(-2).long()
        return LEVELS[codes] * (self.scale.float() * self.shared).repeat_interleave(16, 1)


@cache
def repaired(folder: Path, mtp: str = "auto") -> Repaired:
    return diagnose(LocalCheckpoint(folder), mtp=mtp).repaired  # type: ignore[arg-type]


def plan(source: Path, mtp: str = "auto", **options: Any) -> ArtifactPlan:
    return plan_nvfp4(repaired(source, mtp), Nvfp4Options(**options))


def write(source: Path, out: Path, mtp: str = "auto", **options: Any) -> ArtifactPlan:
    """The plan, written by the one pass."""
    made = plan(source, mtp, **options)
    execute([made], out, threads=2)
    return made


def json_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def matrices(stored: dict[str, torch.Tensor]) -> dict[str, Matrix]:
    """The NVFP4 modules of a folder of either layout, by module path."""
    found = {}
    for name, tensor in stored.items():
        module, _, last = name.rpartition(".")
        if tensor.dtype != torch.uint8:
            continue
        scale = stored[f"{module}.weight_scale"]
        if last == "weight_packed":
            shared = 1 / stored[f"{module}.weight_global_scale"].item()
        else:
            shared = stored[f"{module}.weight_scale_2"].item()
        found[module] = Matrix(tensor, scale, shared)
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same bits, shape and dtype."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return raw(one) == raw(other)
