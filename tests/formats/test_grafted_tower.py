"""Folders of FP8 and NVFP4 keep a vision tower as it is and list it, wherever it is from."""

from __future__ import annotations

import json

import pytest
from quirks_planted import tensors_in

from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor.diagnose import diagnose
from qexport.families.roles import Block
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.registry import format_of
from qexport.onepass.execute import execute

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
