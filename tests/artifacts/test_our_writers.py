"""What qexport writes is read back: each format's own plan, the one pass, then every value and every promise.

Written and read by separate code: encoders are compiled loops, the readers' decoders plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from zoo_types import Zoo

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import Repaired, diagnose
from qexport.families.roles import Block
from qexport.families.view import ModelView
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4
from qexport.formats.opening import open_artifact
from qexport.formats.plan import ArtifactPlan
from qexport.onepass.execute import execute
from qexport.onepass.rows import read_rows
from qexport.receipt.verification import Status
from qexport.verification.stored_form import check_stored_form

SMALL = {"hidden": 128, "intermediate": 256, "layers": 4}
Planner = Callable[[Repaired], Sequence[ArtifactPlan]]


def mlx(**options: object) -> Planner:
    return lambda repaired: plan_mlx(repaired, MlxOptions(**options))  # type: ignore[arg-type]


def fp8(**options: object) -> Planner:
    return lambda repaired: [plan_fp8(repaired, Fp8Options(**options))]  # type: ignore[arg-type]


def nvfp4(**options: object) -> Planner:
    return lambda repaired: [plan_nvfp4(repaired, Nvfp4Options(**options))]  # type: ignore[arg-type]


# The planner, and the largest relative error of a matrix: half a step of the coarsest codes, roughly.
CASES: dict[str, tuple[Planner, float]] = {
    "mlx 6": (mlx(bits=6), 0.04),
    "mlx mixed": (mlx(recipe="mixed_3_6"), 0.3),
    "mlx mxfp4": (mlx(mode="mxfp4"), 0.25),
    "mlx mxfp8": (mlx(mode="mxfp8"), 0.05),
    "mlx nvfp4": (mlx(mode="nvfp4"), 0.2),
    "mlx sidecars": (mlx(bits=4, mtp=("mtplx",), mtp_bits=8), 0.2),
    "mlx vllm": (mlx(bits=8, mtp=("vllm-mlx",)), 0.02),
    "mlx embedded": (mlx(bits=8, mtp=("embedded",), mtp_bits=8), 0.02),
    "mlx drafter": (mlx(bits=8, mtp=("drafter",), mtp_bits=6), 0.05),
    "fp8": (fp8(), 0.05),
    "fp8 bf16 head": (fp8(mtp_bf16=True), 0.05),
    "fp8 compressed": (fp8(layout="compressed-tensors"), 0.05),
    "nvfp4": (nvfp4(), 0.2),
    "nvfp4 all": (nvfp4(scope="all-linear"), 0.2),
    "nvfp4 compressed": (nvfp4(layout="compressed-tensors"), 0.2),
    "nvfp4 nvidia": (nvfp4(scope="nvidia"), 0.2),
    "nvfp4 nvidia compressed": (nvfp4(scope="nvidia", layout="compressed-tensors"), 0.2),
}


def write(repaired: Repaired, planner: Planner, out: Path) -> Path:
    """The trunk's folder; a drafter lies beside it under its usual name."""
    plans = list(planner(repaired))
    targets = [out, out.with_name(f"{out.name}-MTP")][: len(plans)]
    execute(plans, targets, threads=1)
    return out


def values(view: ModelView, name: str) -> torch.Tensor:
    tensor = next(tensor for tensor in view if tensor.name == name).data
    return read_rows(tensor, 0, tensor.matrix_shape[0]).float().reshape(tensor.shape)


@pytest.mark.parametrize("model", ["qwen3_5", "qwen3_5_moe"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_promises(zoo: Zoo, tmp_path: Path, case: str, model: str) -> None:
    planner, error = CASES[case]
    repaired = diagnose(LocalCheckpoint(zoo(model, **SMALL))).repaired
    artifact = open_artifact(write(repaired, planner, tmp_path / "Model"))
    for finding in check_stored_form(artifact):
        assert finding.status is Status.PASS, finding.summary
    source, view = repaired.view(), artifact.view()
    assert view.mtp_layers == 1
    assert {tensor.name for tensor in view} == {tensor.name for tensor in source}
    packed = 0
    for tensor in source:
        found, expected = values(view, tensor.name), values(source, tensor.name)
        off = float((found - expected).norm() / expected.norm())
        # One-dimensional ones are never packed; MLX's norms lose the bits that adding 1 in bf16 takes.
        limit = error if len(tensor.shape) > 1 else 0.02
        if tensor.block is Block.VISION:
            limit = 0.0
        assert off <= limit, f"{tensor.name}: {off:.4f}"
        packed += off > 0 and len(tensor.shape) > 1
    assert packed >= 12


@pytest.mark.parametrize("case", ["fp8", "nvfp4", "mlx 6"])
def test_no_head(zoo: Zoo, tmp_path: Path, case: str) -> None:
    repaired = diagnose(LocalCheckpoint(zoo("qwen3_5", **SMALL)), mtp="drop").repaired
    artifact = open_artifact(write(repaired, CASES[case][0], tmp_path / "Model"))
    assert not artifact.has_head
    assert artifact.declared_mtp == 0
    assert {finding.status for finding in check_stored_form(artifact)} == {Status.PASS}


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma3", "qwen3_moe"])
@pytest.mark.parametrize("case", ["fp8", "nvfp4", "mlx 6"])
def test_other_families(zoo: Zoo, tmp_path: Path, case: str, name: str) -> None:
    repaired = diagnose(LocalCheckpoint(zoo(name))).repaired
    artifact = open_artifact(write(repaired, CASES[case][0], tmp_path / "Model"))
    for finding in check_stored_form(artifact):
        assert finding.status is not Status.FAIL, finding.summary
    view = artifact.view()
    for tensor in repaired.view():
        found, expected = values(view, tensor.name), values(repaired.view(), tensor.name)
        assert float((found - expected).norm() / expected.norm()) < 0.2, tensor.name
