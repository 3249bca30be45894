"""Folders of every kind that others leave: other heads, other bases, shards, declarations in other places."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nvfp4_folders import json_of, repaired, write
from nvfp4_reading import tensors_in
from safetensors.torch import load_file, save_file
from stripped import strip
from zoo_types import Zoo

from qexport.errors import InputError, UsageProblem
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.opening import open_artifact
from qexport.onepass.execute import execute
from qexport.receipt.verification import Status
from qexport.run.adopt import Adoption, write_adopted
from qexport.verification.stored_form import check_stored_form

sys.path.append(str(Path(__file__).parents[1] / "artifacts"))
import packed_folders as packing

SMALL = {"hidden": 128, "intermediate": 256, "layers": 4}
INDEX = "model.safetensors.index.json"
DECLARED = "hf_quant_config.json"


@pytest.fixture
def base(zoo: Zoo) -> Path:
    return zoo("qwen3_5", **SMALL)


@pytest.fixture
def lost(base: Path, tmp_path: Path) -> Path:
    write(base, tmp_path / "lost")
    return strip(tmp_path / "lost")


def whole(folder: Path, base: Path, out: Path) -> Adoption:
    """Adopted, and every check of what is stored passes."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    wanted = Adoption(folder, out, str(base))
    write_adopted(wanted)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    failed = [f for f in check_stored_form(open_artifact(out)) if f.status is not Status.PASS]
    assert failed == []
    assert tensors_in(out).keys() >= tensors_in(folder).keys()
    return wanted


def in_two(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {n: f"model-0000{1 + (at > len(names) // 2)}-of-00002.safetensors" for at, n in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n] for n in names if files[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


@pytest.mark.parametrize("index", [True, False])
def test_shards_stay_beside_what_is_new(lost: Path, base: Path, tmp_path: Path, index: bool) -> None:
    in_two(lost)
    if not index:
        (lost / INDEX).unlink()
    wanted = whole(lost, base, tmp_path / "out")
    assert len(wanted.planned.kept) == 2
    found = json_of(tmp_path / "out", INDEX)["weight_map"]
    assert found.keys() == tensors_in(tmp_path / "out").keys()
    assert set(found.values()) == {*wanted.planned.kept, "model-grafted.safetensors"}


@pytest.mark.parametrize("where", ["the other file alone", "text_config"])
def test_declarations_in_other_places_are_completed(
    lost: Path, base: Path, tmp_path: Path, where: str
) -> None:
    config = json_of(lost)
    said = config.pop("quantization_config")
    if where == "text_config":
        config["text_config"]["quantization_config"] = said
    (lost / "config.json").write_text(json.dumps(config))
    whole(lost, base, tmp_path / "out")
    made = json_of(tmp_path / "out")
    assert "quantization_config" not in made["text_config"]
    assert ("quantization_config" in made) == (where == "text_config")
    assert {"mtp*", "model.visual*"} <= set(
        json_of(tmp_path / "out", DECLARED)["quantization"]["exclude_modules"]
    )


def test_a_quantized_head_is_kept_and_no_other_is_put_beside_it(base: Path, tmp_path: Path) -> None:
    execute([plan_fp8(repaired(base))], tmp_path / "whole")
    wanted = whole(tmp_path / "whole", base, tmp_path / "out")
    assert wanted.planned.plan.details["grafted"]["tensors"] == 0
    assert wanted.planned.listed == ()
    for mode in ("graft", "drop"):
        with pytest.raises(UsageProblem, match="an MTP head of its own"):
            write_adopted(Adoption(tmp_path / "whole", tmp_path / mode, str(base), mtp=mode))  # type: ignore[arg-type]
        assert not (tmp_path / mode).exists()


def test_a_base_of_another_size_is_refused_and_a_stranger_is_named(
    zoo: Zoo, lost: Path, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="hidden_size is 128 here and 256 in the base"):
        write_adopted(Adoption(lost, tmp_path / "out", str(zoo("qwen3_5", **{**SMALL, "hidden": 256}))))
    assert not (tmp_path / "out").exists()
    other = zoo("qwen3_5", seed=5, **SMALL)
    for each, expected in ((other, {"mtp.stranger", "vision.stranger"}), (base, set())):
        found = Adoption(lost, tmp_path / "out", str(each)).diagnosis.findings
        assert {f.id for f in found if f.id.endswith("stranger")} == expected
    words = next(
        f for f in Adoption(lost, tmp_path / "out", str(other)).diagnosis.findings if "stranger" in f.id
    )
    assert other.name in words.what


def test_ties_of_the_base_do_not_matter(zoo: Zoo, lost: Path, base: Path, tmp_path: Path) -> None:
    """A head takes embedding and output of the model that it is put into."""
    tied = shutil.copytree(base, tmp_path / "tied")
    config = json_of(tied)
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (tied / "config.json").write_text(json.dumps(config))
    for file in tied.glob("*.safetensors"):
        save_file({n: t for n, t in load_file(file).items() if n != "lm_head.weight"}, file)
    (tied / INDEX).unlink(missing_ok=True)
    whole(lost, tied, tmp_path / "out")
    assert json_of(tmp_path / "out")["tie_word_embeddings"] is False


DIALECTS = {
    "compressed-tensors, rows of FP8": lambda source: packing.compressed_fp8(source, "channel"),
    "compressed-tensors, integers": lambda source: packing.compressed_int(source, points=True),
    "ModelOpt, integers with smoothed inputs": packing.modelopt_awq,
    "native FP8": packing.fp8_folder,
}


@pytest.mark.parametrize("kind", DIALECTS)
@pytest.mark.parametrize("alone", [False, True])
def test_each_dialect_of_others_gets_head_and_lists(
    base: Path, tmp_path: Path, kind: str, alone: bool
) -> None:
    """Also as ``AutoModelForCausalLM`` leaves it: text-only names, every path written out."""
    packed = DIALECTS[kind](base)
    packed.drop(r"^mtp\.|^model\.visual\.")
    declared = packed.config["quantization_config"]
    declared[_listed(declared)] = [
        name.removesuffix(".weight")
        for name, tensor in packed.tensors.items()
        if name.endswith((".weight", "lm_head.weight")) and tensor.dtype == torch.bfloat16
    ]
    del packed.config["vision_config"]
    if alone:
        _text_only(packed)
    folder = packed.write(tmp_path / "lost")
    wanted = whole(folder, base, tmp_path / "out")
    assert any("mtp" in entry for entry in wanted.planned.listed)
    assert all("mtp" in entry or "visual" in entry for entry in wanted.planned.listed)
    names = {name.split(".layers.")[0] for name in tensors_in(tmp_path / "out")}
    assert ("model" in names) == alone
    assert any(name.startswith("model.visual.") for name in names) == (not alone)
    made = json_of(tmp_path / "out")
    assert made.get("text_config", made)["mtp_num_hidden_layers"] == 1


def _listed(declared: dict[str, Any]) -> str:
    return "modules_to_not_convert" if declared["quant_method"] == "fp8" else "ignore"


def _text_only(packed: packing.Packed) -> None:
    packed.tensors = {packing.plain(name): tensor for name, tensor in packed.tensors.items()}
    declared = packed.config["quantization_config"]
    declared[_listed(declared)] = [packing.plain(entry) for entry in declared[_listed(declared)]]
    text = packed.config["text_config"]
    alone = {"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text"}
    packed.config = {**text, **alone, "quantization_config": declared}


def test_an_mlx_folder_is_told_where_its_head_goes(base: Path, tmp_path: Path) -> None:
    folder = packing.mlx_folder(base)
    packing.take_head(folder)
    with pytest.raises(UsageProblem, match="a folder of its own") as refused:
        _ = Adoption(folder.write(tmp_path / "mlx"), tmp_path / "out", str(base)).planned
    assert "qexport mlx MODEL --base BASE" in str(refused.value.hint)


def test_a_head_whose_experts_are_one_stack_stays_so(zoo: Zoo, tmp_path: Path) -> None:
    """llm-compressor copies it as it lies in the model, beside a trunk with experts one by one."""
    source = zoo("qwen3_5_moe", layers=4)
    write(source, tmp_path / "lost", layout="compressed-tensors", scope="all-linear")
    folder = strip(tmp_path / "lost", tower=False)
    head = {name: tensor for name, tensor in tensors_in(source).items() if name.startswith("mtp.")}
    assert "mtp.layers.0.mlp.experts.gate_up_proj" in head
    save_file(tensors_in(folder) | head, folder / "model.safetensors")
    wanted = whole(folder, source, tmp_path / "out")
    assert wanted.planned.plan.details["mtp"] == {"layers": 1, "origin": "own"}
    assert "re:.*mtp.*" in wanted.planned.listed
    assert json_of(tmp_path / "out")["text_config"]["mtp_num_hidden_layers"] == 1
