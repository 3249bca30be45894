"""What an earlier save left beside a complete model: the complete one is used, two are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_bench import ids, opened, repair, same, tensors_in
from quirks_planted import change_config, change_json
from safetensors.torch import save_file
from zoo import write_tensors
from zoo_types import Zoo, ZooCopy

from qexport.doctor import diagnose
from qexport.errors import InputError

INDEX = "model.safetensors.index.json"


def save(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    write_tensors(folder, tensors, shards)


def zeros(folder: Path) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors_in(folder).items()}


def assert_used(zoo: Zoo, folder: Path, out: Path, *, shown: str) -> None:
    """The tensors are the zoo's; the finding names what is wrong."""
    diagnosis, written = repair(folder, out)
    found = {f.id: f for f in diagnosis.findings}
    assert shown in found["weights.stale_index"].what
    assert not diagnosis.errors
    wanted, got = tensors_in(zoo("llama", shards=1)), tensors_in(written)
    assert wanted.keys() == got.keys()
    assert all(same(got[name], tensor) for name, tensor in wanted.items())
    assert not ids(diagnose(opened(written)), "repaired") & {"weights.stale_index"}


def test_index_of_shards_that_are_gone(zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("llama", shards=1)
    save(tmp_path, zeros(folder), 3)
    (tmp_path / INDEX).rename(folder / INDEX)
    assert_used(zoo, folder, tmp_path / "out", shown="3 files that are not there")


def test_one_of_the_old_shards_is_left(zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("llama", shards=1)
    save(tmp_path, zeros(folder), 3)
    for name in (INDEX, "model-00002-of-00003.safetensors"):
        (tmp_path / name).rename(folder / name)
    assert_used(zoo, folder, tmp_path / "out", shown="2 files that are not there")
    assert "weights.leftover" in ids(diagnose(opened(folder)), "note")


def test_old_index_beside_new_shards(zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("llama", shards=2)
    save(tmp_path, zeros(folder), 3)
    (tmp_path / INDEX).replace(folder / INDEX)
    assert_used(zoo, folder, tmp_path / "out", shown="3 files that are not there")


def test_old_shards_whose_index_does_not_fit(zoo: Zoo, zoo_copy: ZooCopy, tmp_path: Path) -> None:
    folder = zoo_copy("llama", shards=1)
    old = zeros(folder)
    old["model.layers.0.extra.weight"] = torch.zeros(4)
    save(folder, old, 2)
    change_json(folder, INDEX, lambda index: index["weight_map"].pop("model.layers.0.extra.weight") and None)
    assert_used(zoo, folder, tmp_path / "out", shown="does not list it")


def test_leftover_shards_beside_new_ones(zoo: Zoo, zoo_copy: ZooCopy) -> None:
    """The index is the new one's: nothing to repair, a note."""
    folder = zoo_copy("llama", shards=2)
    save_file({"x": torch.zeros(4)}, folder / "model-00003-of-00004.safetensors")
    before = diagnose(opened(zoo("llama", shards=2)))
    diagnosis = diagnose(opened(folder))
    assert ids(diagnosis) - ids(before) == {"weights.leftover"}


def test_leftover_shards_without_an_index(zoo_copy: ZooCopy) -> None:
    for shards in (1, 2):
        folder = zoo_copy("llama", shards=shards)
        (folder / INDEX).unlink(missing_ok=True)
        save_file({"x": torch.zeros(4)}, folder / "model-00003-of-00004.safetensors")
        diagnosis = diagnose(opened(folder))
        assert not diagnosis.errors
        assert "model-00003-of-00004.safetensors" in opened(folder).unused


def test_two_complete_models_are_refused(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("llama", shards=1)
    save(folder, zeros(folder), 2)
    with pytest.raises(InputError, match="both model"):
        opened(folder)
    (folder / INDEX).unlink()
    with pytest.raises(InputError, match="several safetensors files"):
        opened(folder)


def test_shards_missing_and_nothing_complete(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("llama", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="1 of 2 shard is missing"):
        opened(folder)


# --- ids that the vocabulary does not have ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "qwen3_moe", "gemma3"])
@pytest.mark.parametrize("bad", [-1, 99_999_999])
def test_ids_outside_the_vocabulary(zoo_copy: ZooCopy, tmp_path: Path, name: str, bad: int) -> None:
    folder = zoo_copy(name)

    def change(config: dict[str, Any]) -> None:
        for part in (config, config.get("text_config", config)):
            part["pad_token_id"] = bad

    change_config(folder, change)
    change_json(
        folder,
        "generation_config.json",
        lambda g: g.update(pad_token_id=bad, eos_token_id=[*_list(g["eos_token_id"]), bad]),
    )
    before = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    diagnosis, out = repair(folder, tmp_path / "out")
    assert "tokenizer.ids_outside" in ids(diagnosis, "repaired")
    config = json.loads((out / "config.json").read_text())
    assert config.get("pad_token_id") is None
    assert config.get("text_config", {}).get("pad_token_id") is None
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["pad_token_id"] is None
    assert _list(generation["eos_token_id"]) == before[:-1]
    assert not ids(diagnose(opened(out)), "repaired", "error")


def _list(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]
