"""What a plan would give is what reading the written artifact gives: every tensor, every bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_our_writers import CASES, SMALL, Planner, write
from zoo_types import Zoo

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import Repaired, diagnose
from qexport.errors import InputError
from qexport.evidence.imatrix_file import ImportanceMatrix
from qexport.families.roles import Block, Role
from qexport.families.view import ModelView
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.opening import open_artifact
from qexport.onepass.as_stored import as_stored
from qexport.onepass.execute import execute
from qexport.onepass.rows import read_rows
from qexport.run.weigh import stand_in


def gguf(type_name: str, matrix: ImportanceMatrix | None = None) -> Planner:
    return lambda repaired: plan_gguf(repaired.view(), [type_name], GgufOptions(imatrix=matrix))


def rows_of(view: ModelView) -> dict[str, torch.Tensor]:
    return {t.name: read_rows(t.data, 0, t.data.matrix_shape[0]).float().reshape(t.shape) for t in view}


def check(repaired: Repaired, planner: Planner, path: Path) -> ModelView:
    """Everything equal; tensors that an artifact does not hold are in neither. Gives the view."""
    source = repaired.view()
    artifact = open_artifact(path, like=source).view()
    stored = as_stored(source, planner(repaired), threads=2)
    expected, found = rows_of(artifact), rows_of(stored)
    assert found.keys() == expected.keys()
    different = [name for name, rows in found.items() if not torch.equal(rows, expected[name])]
    assert different == []
    assert (stored.layers, stored.mtp_layers) == (artifact.layers, artifact.mtp_layers)
    assert stored.text["vocab_size"] == artifact.text["vocab_size"]
    return stored


OF_MIXTURES = ("mlx 6", "mlx drafter", "fp8 compressed", "nvfp4", "nvfp4 compressed")


@pytest.mark.parametrize(
    ("model", "case"),
    [*(("qwen3_5", case) for case in CASES), *(("qwen3_5_moe", case) for case in OF_MIXTURES)],
)
def test_folders(zoo: Zoo, tmp_path: Path, case: str, model: str) -> None:
    repaired = diagnose(LocalCheckpoint(zoo(model, **SMALL))).repaired
    check(repaired, CASES[case][0], write(repaired, CASES[case][0], tmp_path / "Model"))


@pytest.mark.parametrize(
    ("name", "type_name", "weighted"),
    [
        ("qwen3_5", "IQ4_XS", True),
        ("qwen3_5", "Q3_K_M", False),
        ("qwen3_5_tied", "Q4_K_M", False),
        ("qwen3_5_moe", "Q4_K_M", True),
        ("gemma3", "Q4_K_M", True),
        ("llama3", "Q3_K_M", True),
        ("glm4_moe", "Q2_K", True),
    ],
)
def test_ggufs(zoo: Zoo, tmp_path: Path, name: str, type_name: str, weighted: bool) -> None:
    repaired = diagnose(LocalCheckpoint(zoo(name))).repaired
    planner = gguf(type_name, stand_in(repaired.view(), None) if weighted else None)
    plans = planner(repaired)
    execute(plans, tmp_path, threads=2)
    check(repaired, planner, tmp_path / plans[0].files[0].name)


@pytest.mark.parametrize("case", ["fp8", "nvfp4", "mlx 6"])
def test_other_families(zoo: Zoo, tmp_path: Path, case: str) -> None:
    for name in ("qwen3_moe", "gemma3"):
        repaired = diagnose(LocalCheckpoint(zoo(name))).repaired
        check(repaired, CASES[case][0], write(repaired, CASES[case][0], tmp_path / name))


def test_any_rows_of_a_tensor_whose_scales_span_more(zoo: Zoo) -> None:
    repaired = diagnose(LocalCheckpoint(zoo("qwen3_5"))).repaired
    for case in ("fp8", "nvfp4 compressed"):
        stored = as_stored(repaired.view(), CASES[case][0](repaired))
        tensor = stored.find(Role.FFN_DOWN, block=Block.TRUNK)
        assert tensor is not None
        whole = read_rows(tensor.data, 0, tensor.shape[0])
        assert torch.equal(read_rows(tensor.data, 3, 131), whole[3:131])


def test_what_a_type_cannot_hold_is_named(zoo_copy, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = zoo_copy("llama3")
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("mlp.up_proj.weight"))
    tensors[name][0, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    repaired = diagnose(LocalCheckpoint(folder)).repaired
    with pytest.raises(InputError, match="hold values that Q4_K cannot store"):
        rows_of(as_stored(repaired.view(), gguf("Q4_K_S")(repaired)))
