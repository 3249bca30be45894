"""MLX folders that see: mlx-lm runs the text, mlx-vlm is shown the pictures, or it is said why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlx_bench import needs_mlx_lm, repaired, tensors_of, written
from safetensors.torch import save_file
from test_mlx_sees import unpacked
from vlm_bench import PYTHON, needs_mlx_vlm
from zoo_types import Zoo

from qexport.receipt.verification import OF_IMAGES, Check, Status, Verdict, Verification
from qexport.verification.folder_runtimes import ENGINES, FolderRuntime, folder_runtime
from qexport.verification.options import VerifyOptions
from qexport.verification.run import verify

pytestmark = pytest.mark.slow
OPTIONS = VerifyOptions(n_predict=12, threads=1, context=512, time_limit=120)


def found_of(report: Verification) -> dict[Check, Verdict]:
    return {finding.check: finding for finding in report.findings if finding.check in OF_IMAGES}


@needs_mlx_lm
def test_without_mlx_vlm_text_is_proven_and_pictures_are_not_run(zoo: Zoo, tmp_path: Path) -> None:
    model = repaired(zoo("qwen3_vl"))
    (folder,), _ = written(model, unpacked(model), tmp_path / "out")
    absent = tmp_path / "absent.py"
    absent.write_text("raise ModuleNotFoundError(\"No module named 'mlx_vlm'\")")
    runtime = folder_runtime("mlx-lm")
    runtime.seer = FolderRuntime(ENGINES["mlx-vlm"], first=[absent])
    report = verify(folder, view=model.view(), options=OPTIONS, runtime=runtime)
    assert (report.passed, report.engine.name) == (True, "mlx-lm")
    (only,) = found_of(report).values()
    assert (only.check, only.status) == (Check.IMAGE_LOADS, Status.SKIPPED)
    assert only.summary == (
        "mlx-vlm cannot be imported: ModuleNotFoundError: No module named 'mlx_vlm' (pip install "
        "'qexport[mlx-vlm]', or name a Python that has it with --runtime-python PATH)"
    )
    assert report.images.startswith("not run: mlx-vlm cannot be imported")


@needs_mlx_vlm
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl", "qwen3_vl_moe"])
def test_mlx_vlm_is_shown_pictures(zoo: Zoo, tmp_path: Path, name: str) -> None:
    """What its tower makes of them, and the text that follows; text alone with mlx-vlm as well."""
    model = repaired(zoo(name))
    (folder, *_), _ = written(model, unpacked(model), tmp_path / "out")
    options = replace(OPTIONS, runtime="mlx-lm", runtime_python=Path(PYTHON))
    report = verify(folder, view=model.view(), options=options)
    found = found_of(report)
    assert {check: each.status for check, each in found.items()} == {
        Check.IMAGE_LOADS: Status.PASS,
        Check.IMAGE_EMBEDDINGS: Status.PASS,
        Check.IMAGE_TEXT: Status.PASS,
    }
    assert found[Check.IMAGE_LOADS].data["runtime"] == "mlx-vlm"
    assert found[Check.IMAGE_EMBEDDINGS].data["towers"]["out"]["error"] < 5e-4
    assert (report.images, report.passed, report.engine.name) == ("passed", True, "mlx-lm")

    tensors = tensors_of(folder)
    stem = "blocks.1.attn.proj" if name == "qwen3_5" else "deepstack_merger_list.0.linear_fc2"
    broken = {f"vision_tower.{stem}.{kind}": torch.zeros(1) for kind in ("weight", "bias")}
    assert tensors.keys() >= broken.keys()
    save_file(
        {key: value * 0 if key in broken else value for key, value in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "mlx"},
    )
    alone = verify(folder, view=model.view(), options=replace(options, runtime="mlx-vlm"))
    assert alone.engine.name == "mlx-vlm"
    assert alone.finding(Check.AGREEMENT).status is Status.PASS
    assert alone.finding(Check.IMAGE_EMBEDDINGS).status is Status.FAIL
