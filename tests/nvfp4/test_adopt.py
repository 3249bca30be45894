"""Folders that others quantized: given head, tower and lists, proven, and ready to be published."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from document_types import misfits
from nvfp4_folders import repaired, write
from nvfp4_reading import raw, tensors_in
from safetensors.torch import load_file, save_file
from stripped import strip
from zoo_types import Zoo

from qexport.cli._documents import AdoptDocument
from qexport.cli.main import cli
from qexport.errors import EnvironmentProblem, InputError, UsageProblem
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.opening import open_artifact
from qexport.onepass.execute import execute
from qexport.receipt.state import State
from qexport.receipt.store import read_receipt
from qexport.receipt.verification import Check, Status
from qexport.run import adopt
from qexport.run.adopt import Adoption, prove_adopted, write_adopted
from qexport.verification.options import VerifyOptions
from qexport.verification.stored_form import check_stored_form

Make = Callable[[Path], None]


def _fp8(source: Path, out: Path) -> None:
    execute([plan_fp8(repaired(source))], out, threads=2)


CASES: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "modelopt": ("qwen3_5_moe", write),
    "modelopt-mixed": ("qwen3_5_moe", lambda source, out: write(source, out, scope="nvidia")),
    "compressed-tensors": (
        "qwen3_5_moe",
        lambda source, out: write(source, out, layout="compressed-tensors", scope="all-linear"),
    ),
    "fp8": ("qwen3_5", _fp8),
}


def lost(zoo: Zoo, tmp_path: Path, case: str, **how: Any) -> tuple[Path, Path]:
    """The base, and a folder made of it that has lost head and tower."""
    name, make = CASES[case]
    make(zoo(name), tmp_path / "lost")
    return zoo(name), strip(tmp_path / "lost", **how)


def bytes_in(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_gets_head_and_tower_and_every_list(zoo: Zoo, tmp_path: Path, case: str) -> None:
    base, folder = lost(zoo, tmp_path, case)
    before = bytes_in(folder)
    wanted = Adoption(folder, tmp_path / "out", str(base))
    entry = write_adopted(wanted, threads=2)
    assert bytes_in(folder) == before
    assert (
        wanted.size
        == sum(f.size for f in entry.files)
        == sum(file.stat().st_size for file in (tmp_path / "out").iterdir() if file.name != "qexport.json")
    )
    assert {f.name: f.sha256 for f in entry.files}.items() <= bytes_in(tmp_path / "out").items()
    theirs, mine = tensors_in(folder), tensors_in(tmp_path / "out")
    assert all(raw(mine[name]) == raw(theirs[name]) for name in theirs)
    added = mine.keys() - theirs.keys()
    assert {name.split(".")[0] for name in added} == {"mtp", "model"}
    assert all(name.startswith(("mtp.", "model.visual.")) for name in added)
    assert {mine[name].dtype for name in added} == {torch.bfloat16}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == mine.keys()
    findings = check_stored_form(open_artifact(tmp_path / "out"))
    assert [f.check for f in findings if f.status is not Status.PASS] == []
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["mtp_num_hidden_layers"] == 1
    assert "vision_config" in config
    known = read_receipt(tmp_path / "out").receipt.artifacts
    assert [(each.state, each.source.mtp) for each in known] == [(State.NOT_RUN, f"grafted from {base.name}")]


def test_a_head_that_is_there_and_not_listed_is_listed(zoo: Zoo, tmp_path: Path) -> None:
    """vLLM would take its bf16 for packed numbers, and say nothing."""
    write(zoo("qwen3_5"), tmp_path / "folder")
    for name in ("config.json", "hf_quant_config.json"):
        text = (tmp_path / "folder" / name).read_text()
        (tmp_path / "folder" / name).write_text(
            text.replace('"mtp.layers.0*"', '"unlisted"').replace('"mtp*"', '"unlisted"')
        )
    found = check_stored_form(open_artifact(tmp_path / "folder"))
    assert [each.check for each in found if each.status is Status.FAIL] == [Check.DECLARED]
    write_adopted(Adoption(tmp_path / "folder", tmp_path / "out"))
    assert all(f.status is Status.PASS for f in check_stored_form(open_artifact(tmp_path / "out")))


def test_links_take_no_room_and_are_the_same_files(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = lost(zoo, tmp_path, "modelopt")
    wanted = Adoption(folder, tmp_path / "out", str(base), link=True)
    assert wanted.new_bytes + (folder / "model.safetensors").stat().st_size == wanted.size
    write_adopted(wanted)
    assert (tmp_path / "out" / "model-00001-of-00002.safetensors").samefile(folder / "model.safetensors")
    with pytest.raises(UsageProblem, match="out is there already"):
        write_adopted(wanted)
    monkeypatch.setattr(adopt, "free_bytes", lambda _: 1000)
    with pytest.raises(EnvironmentProblem, match="only 1,000 are free"):
        write_adopted(Adoption(folder, tmp_path / "again", str(base)))
    assert not (tmp_path / "again").exists()


def test_a_disk_that_fills_up_leaves_nothing(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = lost(zoo, tmp_path, "modelopt")
    seen: list[set[str]] = []

    def full(_: int) -> None:
        seen.append({file.name for file in (tmp_path / "out").iterdir()})
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qexport.onepass.files.os.fsync", full)
    with pytest.raises(EnvironmentProblem, match=r"model-00001-of-00002\.safetensors"):
        write_adopted(Adoption(folder, tmp_path / "out", str(base)))
    assert seen == [{".model-00001-of-00002.safetensors.part"}]  # never half of it under its name
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    _, folder = lost(zoo, tmp_path, "modelopt")
    with pytest.raises(InputError, match="num_hidden_layers"):
        _ = Adoption(folder, tmp_path / "out", str(zoo("qwen3_5_moe", layers=8))).planned
    with pytest.raises(UsageProblem, match="is not quantized"):
        _ = Adoption(zoo("qwen3_5"), tmp_path / "out").opened


@pytest.mark.slow
def test_the_command_proves_what_it_wrote_and_finds_a_wrong_scale(zoo: Zoo, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    base, folder = lost(zoo, tmp_path, "modelopt", tower=False)
    words = [str(folder), "--base", str(base), "--against", str(base), "--measure", "256", "--json"]
    planned = CliRunner().invoke(cli, ["adopt", *words, "-o", str(tmp_path / "out"), "--dry-run"])
    assert planned.exit_code == 0, planned.stderr
    assert misfits(AdoptDocument, json.loads(planned.stdout)) == []
    assert json.loads(planned.stdout)["mtp"] == {"layers": 1, "origin": f"grafted from {base.name}"}
    assert not (tmp_path / "out").exists()
    made = CliRunner().invoke(cli, ["adopt", *words, "-o", str(tmp_path / "out"), "--threads", "1"])
    assert made.exit_code == 0, made.stderr
    assert misfits(AdoptDocument, json.loads(made.stdout)) == []
    report = json.loads(made.stdout)["verification"]
    assert report["runtime"]["name"] == "xllamacpp by GGUF twin"
    assert {"twin", "agreement", "mtp_text", "mtp_head", "divergence"} <= set(report["verified"])
    (entry,) = read_receipt(tmp_path / "out").receipt.artifacts
    assert entry.state is State.PASSED
    pushed = CliRunner().invoke(cli, ["push", str(tmp_path / "out"), "you/out", "--dry-run"])
    assert pushed.exit_code == 0, pushed.stderr

    shutil.copytree(folder, tmp_path / "wrong")
    tensors = load_file(tmp_path / "wrong" / "model.safetensors")
    for name in tensors:
        if name.endswith("weight_scale_2") and ".layers.1." in name:
            tensors[name] *= 16
    save_file(tensors, tmp_path / "wrong" / "model.safetensors", metadata={"format": "pt"})
    wanted = Adoption(tmp_path / "wrong", tmp_path / "bad", str(base))
    view = repaired(base).view()
    options = VerifyOptions(threads=1, n_predict=16, context=512, mtp=False)
    found = prove_adopted(wanted, write_adopted(wanted), view, options, measure=0)
    assert found.state is State.FAILED
    assert Check.AGREEMENT in {each.check for each in found.failures}
