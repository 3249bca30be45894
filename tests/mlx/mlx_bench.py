"""What the MLX tests share: writing a zoo model, mlx-lm in a child process, comparing tensors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from child_jobs import ask
from safetensors.torch import load_file

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import Repaired, diagnose
from qexport.formats.merged.plan import plan_merged
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.plan import ArtifactPlan
from qexport.onepass.execute import execute

needs_mlx_lm = pytest.mark.skipif(find_spec("mlx_lm") is None, reason="mlx-lm is not installed")

CHILD = Path(__file__).with_name("mlx_child.py")


def repaired(folder: Path, **options: Any) -> Repaired:
    found = diagnose(LocalCheckpoint(folder), **options)
    assert not [f for f in found.findings if f.severity == "error"]
    return found.repaired


def written(model: Repaired, options: MlxOptions, out: Path) -> tuple[list[Path], tuple[ArtifactPlan, ...]]:
    """The folders of the trunk and, if there is one, the drafter."""
    plans = plan_mlx(model, options)
    folders = [out, out.with_name(out.name + "-MTP")][: len(plans)]
    execute(plans, folders, threads=2)
    return folders, plans


def fixed(model: Repaired, out: Path) -> Path:
    """The repaired checkpoint, with a model type that mlx-lm knows: what mlx_lm convert is given."""
    execute([plan_merged(model)], out, threads=2)
    config = json.loads((out / "config.json").read_text())
    if config["model_type"] in ("qwen3_5_text", "qwen3_5_moe_text"):
        config["model_type"] = config["model_type"].removesuffix("_text")
        (out / "config.json").write_text(json.dumps(config))
    return out


def mlx_lm(work: str, jobs: Iterable[list[Any]]) -> list[dict[str, Any]]:
    """Results of jobs in a child process."""
    return ask(sys.executable, CHILD, work, jobs)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def tensors_of(folder: Path, pattern: str = "model*.safetensors") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob(pattern)):
        found |= load_file(file)
    return found


def differences(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> list[str]:
    """Names that one side lacks, or whose dtype, shape or bytes differ."""
    return sorted({*ours} ^ {*theirs}) + [
        name for name in ours if name in theirs and not _same(ours[name], theirs[name])
    ]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))
