"""A grafted vision tower: folders keep it as it is and list it; a verdict is of the one it was made with."""

from __future__ import annotations

import json
import shutil

import pytest
from quirks_planted import change_tensors, tensors_in

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor.diagnose import diagnose
from qexport.families.roles import Block
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.registry import format_of
from qexport.onepass.execute import execute
from qexport.receipt.types import Artifact, File
from qexport.receipt.verification import Verification
from qexport.run.target import Target, plan

FORMATS = {
    "fp8": Fp8Options(),
    "compressed": Nvfp4Options(layout="compressed-tensors"),
    "modelopt": Nvfp4Options(layout="modelopt"),
}


def listed(folder):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return config.get("modules_to_not_convert") or config["ignore"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_grafted_tower_is_kept_and_listed_as_an_own_one(zoo, tmp_path, name):
    base, options = LocalCheckpoint(zoo("qwen3_5")), FORMATS[name]
    merged = LocalCheckpoint(zoo("qwen3_5_text"))
    own = diagnose(base)
    grafted = diagnose(merged, mtp_from=base, vision_from=base)
    for diagnosis, folder in ((own, tmp_path / "own"), (grafted, tmp_path / "grafted")):
        (plan,) = format_of(options).plan(diagnosis, options)
        execute([plan], folder)
    assert listed(tmp_path / "grafted") == listed(tmp_path / "own")
    assert any("visual" in entry for entry in listed(tmp_path / "grafted"))
    kept, theirs = tensors_in(tmp_path / "grafted"), tensors_in(zoo("qwen3_5"))
    tower = {name: tensor for name, tensor in theirs.items() if "visual" in name}
    assert len(tower) == sum(t.block is Block.VISION for t in grafted.repaired.view())
    for key, tensor in tower.items():
        assert kept[key].dtype == tensor.dtype
        assert kept[key].equal(tensor), key
    assert {key for key in kept if "visual" in key} == tower.keys()


def test_a_file_beside_another_tower_is_there_and_proven_anew(zoo, tmp_path):
    """Its bytes are the same, its verdict is not: pictures were shown through the tower that was there."""
    merged = LocalCheckpoint(zoo("qwen3_5_text"))

    def planned(base):
        target = Target(GgufOptions(("Q8_0",)), tmp_path / "out")
        trunk, tower = plan([target], diagnose(merged, vision_from=LocalCheckpoint(base)))
        return trunk, tower.fingerprint

    def brighter(tensors):
        name = next(name for name in tensors if "visual" in name and name.endswith("weight"))
        return {**tensors, name: tensors[name] * 2}

    one, other = zoo("qwen3_5"), tmp_path / "other"
    shutil.copytree(one, other)
    change_tensors(other, brighter)
    (trunk, tower), (again, another) = planned(one), planned(other)
    assert trunk.fingerprint == again.fingerprint
    assert tower != another
    files = (File("a.gguf", 1, "a" * 64),)
    there = Artifact(
        "gguf", "Q8_0", files, details=trunk.plan.details, verification=(proof := Verification())
    )
    assert trunk.as_found(there).report is proof
    assert again.as_found(there).report is None
    assert not again.as_found(there).settled
