"""How a file is divided: at tensors' borders, with exact sizes, by what was asked or by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo_types import Zoo

from qexport.checkpoint.local import LocalCheckpoint
from qexport.cli.main import cli
from qexport.container.gguf_file import read_gguf
from qexport.doctor import diagnose
from qexport.errors import UsageProblem
from qexport.families.view import ModelView
from qexport.formats.gguf import split
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.plan import ArtifactPlan
from qexport.onepass.execute import execute


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(0, 100))
def test_cuts(sizes: list[int], limit: int) -> None:
    """Everything once and in order; none too large that could be smaller; no two that fit into one."""
    parts = split.cuts(sizes, limit)
    assert [at for part in parts for at in part] == list(range(len(sizes)))
    if not limit:
        assert len(parts) == 1
        return
    for part, behind in zip(parts, [*parts[1:], None], strict=True):
        assert len(part) > 0
        assert len(part) == 1 or sum(sizes[at] for at in part) <= limit
        assert behind is None or sum(sizes[at] for at in part) + sizes[behind[0]] > limit


@pytest.fixture(scope="module")
def view(zoo: Zoo) -> ModelView:
    return diagnose(LocalCheckpoint(zoo("qwen3_5"))).repaired.view()


def of(view: ModelView, kind: str, **options: object) -> ArtifactPlan:
    (plan,) = plan_gguf(view, [kind], GgufOptions(**options))
    return plan


@pytest.mark.parametrize("kind", ["BF16", "Q4_K_M"])
def test_by_itself_no_part_is_larger(view: ModelView, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Header and all, to the byte: the whole stays whole as long as it fits."""
    whole = of(view, kind)
    assert len(whole.files) == 1
    monkeypatch.setattr(split, "_SURELY", len(whole.files[0].header) + 1000)
    largest = max(tensor.nbytes for tensor in whole.tensors)
    data = [tensor.name for tensor in whole.tensors]
    for most in (whole.size + 200, whole.size - 1, whole.size * 2 // 3, whole.size // 2, whole.size // 3):
        monkeypatch.setattr(split, "LARGEST", most)
        plan = of(view, kind)
        assert (len(plan.files) == 1) == (most > whole.size)
        assert [tensor.name for tensor in plan.tensors] == data
        assert plan.data_size == whole.data_size
        for at, file in enumerate(plan.files):
            mine = [tensor for tensor in plan.tensors if tensor.streams[0][0].file == at]
            assert file.size <= most or len(mine) == 1
            assert file.size >= len(file.header) + sum(tensor.nbytes for tensor in mine)
        header = len(whole.files[0].header)
        assert len(plan.files) <= 1 + whole.size // max(1, most - header - largest - 32 * len(data))
        assert len(of(view, kind, split_max_size=0).files) == 1


def test_folders(view: ModelView, tmp_path: Path) -> None:
    names = {
        (folders, size): [file.name for file in of(view, "Q8_0", folders=folders, split_max_size=size).files]
        for folders in ("split", "all", "none")
        for size in (0, 1_000_000)
    }
    parts = names["none", 1_000_000]
    assert names["split", 0] == names["none", 0] == ["qwen3_5-Q8_0.gguf"]
    assert names["all", 0] == ["Q8_0/qwen3_5-Q8_0.gguf"]
    assert parts[0].startswith("qwen3_5-Q8_0-00001-of-0000")
    assert names["split", 1_000_000] == names["all", 1_000_000] == [f"Q8_0/{name}" for name in parts]
    plan = of(view, "Q8_0", split_max_size=1_000_000)
    execute([plan], tmp_path, threads=1)
    found = {path.relative_to(tmp_path).as_posix(): path.stat().st_size for path in tmp_path.rglob("*.gguf")}
    assert found == {file.name: file.size for file in plan.files}
    assert read_gguf(tmp_path / plan.files[1].name).shards == len(parts)
    with pytest.raises(UsageProblem, match="split, all, none"):
        GgufOptions(("Q8_0",), folders="flat")


def test_the_command(zoo: Zoo, tmp_path: Path) -> None:
    """What is written is what was planned, and is found and pushed from where it lies."""
    command = ["gguf", str(zoo("qwen3_5")), "-q", "Q8_0", "-o", str(tmp_path / "out"), "--no-verify"]
    command += ["--split-max-size", "1M", "--mtp-layout", "drafter"]
    planned = CliRunner().invoke(cli, [*command, "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    files = {
        file["name"]: file["bytes"]
        for artifact in json.loads(planned.stdout)["artifacts"]
        for file in artifact["files"]
    }
    assert CliRunner().invoke(cli, command).exit_code == 0
    there = (path for path in (tmp_path / "out").rglob("*.gguf"))
    assert {path.relative_to(tmp_path / "out").as_posix(): path.stat().st_size for path in there} == files
    assert sorted(files)[-1] == "mtp-qwen3_5-Q8_0.gguf"
    assert sorted(files)[0].startswith("Q8_0/qwen3_5-Q8_0-00001-of-")
