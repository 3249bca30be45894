"""GGUF files read back, written by qexport's own plan and pass: names, order, offsets and types undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from zoo_types import Zoo

from qexport.artifacts import Opened
from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.errors import InputError
from qexport.families.roles import NORM_ROLES
from qexport.families.view import ModelView
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.opening import open_artifact
from qexport.onepass.execute import execute
from qexport.onepass.rows import read_rows

Made = Callable[..., tuple[ModelView, Path]]


@pytest.fixture
def made(zoo: Zoo, tmp_path: Path) -> Made:
    """A source's view and one GGUF of it."""

    def make(name: str, file_type: str = "BF16", split: int | None = None, **options: object):
        view = diagnose(LocalCheckpoint(zoo(name, **options))).repaired.view()
        plans = plan_gguf(view, [file_type], GgufOptions(split_max_size=split))
        execute(plans, tmp_path, threads=1)
        return view, tmp_path / plans[0].files[0].name

    return make


def values(view: ModelView, name: str) -> torch.Tensor:
    tensor = next(tensor for tensor in view if tensor.name == name).data
    return read_rows(tensor, 0, tensor.matrix_shape[0]).float().reshape(tensor.shape)


def opened(made: tuple[ModelView, Path]) -> Opened:
    view, path = made
    return open_artifact(path, like=view)


@pytest.mark.parametrize(
    "name", ["qwen3_5", "qwen3_5_tied", "qwen3_5_moe_122b", "llama", "llama3", "qwen3_moe", "gemma3"]
)
def test_every_value(made: Made, name: str) -> None:
    """In a BF16 file of a bf16 model nothing is lost but the last bit of a logarithm."""
    source, path = made(name)
    artifact = open_artifact(path, like=source)
    assert artifact.layout.word == "gguf"
    view = artifact.view()
    wanted = [tensor for tensor in source if tensor.block.value != "vision"]
    assert [tensor.name for tensor in view] == [tensor.name for tensor in wanted]
    assert view.mtp_layers == source.mtp_layers
    for tensor in wanted:
        found, expected = values(view, tensor.name), values(source, tensor.name)
        if tensor.name.endswith("A_log"):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        elif tensor.data.dtype == "BF16" or tensor.role in NORM_ROLES:
            assert found.equal(expected[: len(found)]), tensor.name
        else:  # float16 and float32 sources are rounded
            assert found.equal(expected.bfloat16().float()), tensor.name


@pytest.mark.parametrize("name", ["qwen3_5", "llama"])
def test_any_rows(made: Made, name: str) -> None:
    """Rows in the source's order, wherever they lie in the file."""
    view = opened(made(name, "Q8_0")).view()
    for tensor in view:
        rows = tensor.data.matrix_shape[0]
        whole = read_rows(tensor.data, 0, rows)
        for start, stop in {(0, 1), (rows // 3, rows // 3 + 2), (rows - 1, rows)}:
            assert read_rows(tensor.data, start, min(stop, rows)).equal(whole[start:stop]), tensor.name


@pytest.mark.parametrize(("file_type", "error"), [("Q8_0", 0.01), ("Q4_K_M", 0.12), ("Q2_K", 0.5)])
def test_packed_types(made: Made, file_type: str, error: float) -> None:
    """Each matrix is the source's, but for the rounding of its type; in another order it would be far off."""
    source, path = made("qwen3_5", file_type)
    view = open_artifact(path, like=source).view()
    for tensor in view:
        if len(tensor.shape) < 2:
            continue
        found, expected = values(view, tensor.name), values(source, tensor.name)
        assert float((found - expected).norm() / expected.norm()) < error, tensor.name


def test_from_any_shard(made: Made) -> None:
    source, path = made("qwen3_5", split=1 << 20)
    shards = sorted(path.parent.glob("*.gguf"))
    assert len(shards) > 1
    for shard in shards:
        view = open_artifact(shard, like=source).view()
        assert values(view, "model.norm.weight").equal(values(source, "model.norm.weight"))
        assert values(view, "mtp.fc.weight").equal(values(source, "mtp.fc.weight"))


def test_alone_it_cannot_be_told(made: Made) -> None:
    _, path = made("llama3")
    with pytest.raises(InputError, match="beside the model") as caught:
        open_artifact(path)
    assert "--against" in str(caught.value.hint)


def test_another_family(made: Made, zoo: Zoo) -> None:
    _, path = made("llama3")
    other = diagnose(LocalCheckpoint(zoo("qwen3"))).repaired.view()
    with pytest.raises(InputError, match="is a 'llama' model"):
        open_artifact(path, like=other)


def test_another_size(made: Made, zoo: Zoo) -> None:
    _, path = made("qwen3_5")
    other = diagnose(LocalCheckpoint(zoo("qwen3_5", hidden=128))).repaired.view()
    with pytest.raises(InputError, match="another model"):
        open_artifact(path, like=other).view()
