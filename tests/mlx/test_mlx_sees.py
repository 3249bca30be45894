"""Folders with a vision tower: the tensors of mlx-vlm's conversion, read back, given as sources, run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlx_bench import config_of, differences, mlx_lm, needs_mlx_lm, repaired, tensors_of, written
from oracle.summary import source_digest
from safetensors.torch import save_file
from vlm_bench import MODELS, converted, golden, hashes, mlx_vlm, needs_mlx_vlm
from zoo_types import Zoo

from qexport.assign.assignment import PLAIN, Assignment
from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import Repaired, diagnose
from qexport.families.roles import Block
from qexport.families.view import ModelTensor
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.opening import open_artifact
from qexport.onepass.as_stored import as_stored
from qexport.onepass.rows import read_rows
from qexport.receipt.verification import Status
from qexport.verification.stored_form import check_stored_form


def unpacked(model: Repaired) -> MlxOptions:
    trunk = plan_mlx(model, MlxOptions())[0].assignment
    assert trunk is not None
    return MlxOptions(types_from=Assignment("mlx", "bf16", dict.fromkeys(trunk.types, PLAIN)), mtp=("none",))


def values(tensor: ModelTensor) -> torch.Tensor:
    return read_rows(tensor.data, 0, tensor.data.matrix_shape[0])


@pytest.mark.parametrize("name", MODELS)
def test_tensors_are_those_of_mlx_vlm(zoo: Zoo, tmp_path: Path, name: str) -> None:
    folder, known = zoo(name, **MODELS[name]), golden(name)
    assert source_digest(folder) == known["source"]
    model = repaired(folder)
    for form, options in {"4-bit": MlxOptions(bits=4), "bf16": unpacked(model)}.items():
        (ours, *_), _ = written(model, options, tmp_path / form)
        assert hashes(tensors_of(ours)) == known[form], form
    assert config_of(tmp_path / "4-bit")["quantization"] == known["quantization"]


@pytest.mark.parametrize("name", MODELS)
def test_it_is_read_back_as_the_source_has_it(zoo: Zoo, tmp_path: Path, name: str) -> None:
    model = repaired(zoo(name, **MODELS[name]))
    (folder, *_), plans = written(model, MlxOptions(bits=4), tmp_path / "out")
    artifact = open_artifact(folder)
    assert {finding.status for finding in check_stored_form(artifact)} == {Status.PASS}
    assert config_of(folder)["vision_config"].items() >= model.config["vision_config"].items()
    source = {tensor.name: tensor for tensor in model.view() if tensor.block is Block.VISION}
    assert len(source) == plans[0].details["vision_tensors"] > 30
    for view in (artifact.view(), as_stored(model.view(), plans)):
        found = {tensor.name: tensor for tensor in view if tensor.block is Block.VISION}
        assert found.keys() == source.keys()
        for key, tensor in found.items():
            assert tensor.shape == source[key].shape
            assert values(tensor).equal(values(source[key])), key
    patch = next(tensor for tensor in artifact.view() if "patch" in tensor.name and len(tensor.shape) > 2)
    middle = values(source[patch.name])[5:70]
    assert read_rows(patch.data, 5, 70).equal(middle)  # rows that begin and end within one output


@pytest.mark.parametrize("name", MODELS)
def test_what_mlx_vlm_has_saved_is_turned_back(zoo: Zoo, tmp_path: Path, name: str) -> None:
    model = repaired(zoo(name, **MODELS[name]), mtp="drop")
    (saved,), _ = written(model, unpacked(model), tmp_path / "saved")
    config = config_of(saved)
    (saved / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "quanti" not in k}))
    diagnosis = diagnose(LocalCheckpoint(saved))
    assert not diagnosis.errors
    (said,) = (finding.what for finding in diagnosis.findings if finding.id == "weights.mlx_saved")
    assert said.startswith("saved by mlx-vlm: convolutions are turned")
    source = {tensor.name: tensor for tensor in model.view()}
    found = {tensor.name: tensor for tensor in diagnosis.repaired.view()}
    assert found.keys() == source.keys()
    for key, tensor in found.items():
        assert tensor.shape == source[key].shape
        wanted = values(source[key]).to(torch.bfloat16)
        if said.endswith("norms") and "norm" in key and tensor.block is not Block.VISION:
            wanted = wanted if "linear_attn" in key else wanted + 1 - 1
        assert values(tensor).to(torch.bfloat16).equal(wanted), key
    patch = next(tensor for tensor in found.values() if "patch" in tensor.name and len(tensor.shape) > 2)
    assert read_rows(patch.data, 5, 70).equal(values(source[patch.name])[5:70])
    # And what is made of it is what is made of the source.
    (again, *_), _ = written(diagnosis.repaired, MlxOptions(bits=4), tmp_path / "again")
    wanted, *_ = written(model, MlxOptions(bits=4), tmp_path / "first")[0]
    assert differences(tensors_of(again), tensors_of(wanted)) == []


def test_an_output_that_is_not_the_embedding_is_found(zoo: Zoo, tmp_path: Path) -> None:
    """mlx-vlm takes its codes of the embedding, and its scales of the output."""
    (folder,), _ = written(repaired(zoo("gemma3", **MODELS["gemma3"])), MlxOptions(), tmp_path / "out")
    tensors = tensors_of(folder)
    assert tensors["language_model.lm_head.scales"].equal(tensors["language_model.model.embed_tokens.scales"])
    tensors["language_model.lm_head.scales"] *= 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    found = [each.summary for each in check_stored_form(open_artifact(folder)) if each.status is Status.FAIL]
    assert len(found) == 1
    assert "lm_head.weight is another matrix than the embedding" in found[0]


def test_the_text_alone(zoo: Zoo, tmp_path: Path) -> None:
    model = repaired(zoo("gemma3", **MODELS["gemma3"]))
    (folder,), (plan,) = written(model, MlxOptions(text_only=True), tmp_path / "out")
    assert plan.details["vision_tensors"] == 0
    assert not [name for name in tensors_of(folder) if not name.startswith("language_model.model.")]
    config = config_of(folder)
    assert "vision_config" not in config
    assert "hidden_size" not in config
    assert not (folder / "preprocessor_config.json").exists()


def test_a_head_among_the_tensors_blinds_omlx(zoo: Zoo) -> None:
    model = repaired(zoo("qwen3_5"))
    for text_only in (False, True):
        (plan,) = plan_mlx(model, MlxOptions(mtp=("embedded",), text_only=text_only))
        assert any("oMLX takes the model for one of text alone" in note for note in plan.notes) != text_only


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe"])
def test_mlx_vlm_takes_the_published_word_for_a_tower_alone(zoo: Zoo, tmp_path: Path, name: str) -> None:
    """transformers saves another: ``qwen3_vl_vision``."""
    model = repaired(zoo(name))
    vision = {**model.config["vision_config"], "model_type": f"{name}_vision"}
    saved = replace(model, config={**model.config, "vision_config": vision})
    (folder,), _ = written(saved, MlxOptions(), tmp_path / "out")
    assert config_of(folder)["vision_config"]["model_type"] == name


def test_config_says_what_mlx_vlm_would_guess_wrongly(zoo: Zoo, tmp_path: Path) -> None:
    (folder,), _ = written(repaired(zoo("gemma3", **MODELS["gemma3"])), MlxOptions(), tmp_path / "gemma")
    config = config_of(folder)
    assert config["hidden_size"] == config["text_config"]["hidden_size"] == 256  # 2048, which scales pictures
    assert config["text_config"]["mm_tokens_per_image"] == 16
    assert config["vision_config"]["num_channels"] == 3
    source = zoo("qwen3_5", style="saved")
    (folder, _), _ = written(repaired(source), MlxOptions(), tmp_path / "qwen")
    config = config_of(folder)
    assert config["vision_start_token_id"] == config_of(source)["vision_start_token_id"]
    assert config["vision_config"]["patch_size"] == 16


@needs_mlx_lm
@pytest.mark.slow
def test_mlx_lm_loads_the_same_folder(zoo: Zoo, tmp_path: Path) -> None:
    """And has the same numbers as of the text alone, in the same types."""
    jobs = []
    for name, build in MODELS.items():
        for text_only in (False, True):
            out = tmp_path / f"{name}-{text_only}"
            model = repaired(zoo(name, **build))
            types = plan_mlx(model, MlxOptions(bits=4))[0].assignment  # a gate's bits may depend on the tower
            written(model, MlxOptions(types_from=types, text_only=text_only), out)
            jobs.append([str(out), [5, 6, 7, 8]])
    results = mlx_lm("logits", jobs)
    assert not [result for result in results if "error" in result], results
    for one, other in zip(results[::2], results[1::2], strict=True):
        assert one == other


@needs_mlx_vlm
@pytest.mark.slow
def test_mlx_vlm_converts_alike_and_sees(zoo: Zoo, tmp_path: Path) -> None:
    jobs = []
    for name, build in MODELS.items():
        model = repaired(zoo(name, **build))
        theirs = converted(model, tmp_path / name)
        for form, options in {"4-bit": MlxOptions(bits=4), "bf16": unpacked(model)}.items():
            (ours, *_), _ = written(model, options, tmp_path / f"{name}-{form}")
            assert differences(tensors_of(ours), tensors_of(theirs[form])) == [], (name, form)
        found = diagnose(LocalCheckpoint(theirs["bf16"]), mtp="drop")
        assert not found.errors
        assert any(each.what.startswith("saved by mlx-vlm") for each in found.findings)
        jobs.append([str(tmp_path / f"{name}-4-bit"), [2, 10], [11, 12]])
    for job, result in zip(jobs, mlx_vlm("see", jobs), strict=True):
        assert "error" not in result, result
        assert result["parameters"] == sorted(tensors_of(Path(job[0])))
        assert (result["finite"], result["same"], result["other"]) == (True, True, True)
