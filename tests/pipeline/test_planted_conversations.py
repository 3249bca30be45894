"""What a merge leaves in the small files, and numbers that are none: through the doctor into the formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quirks_planted import change_json, change_tensors

from qexport.artifacts.layout import OnDisk
from qexport.checkpoint.local import LocalCheckpoint
from qexport.container.gguf_file import read_gguf
from qexport.doctor import Diagnosis, diagnose
from qexport.errors import InputError
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.opening import layout_of
from qexport.receipt.verification import Status
from qexport.run import steps
from qexport.run.target import Target, plan
from qexport.verification.conversation import folder_ends, template_kept

SIZES = {"head_dim": 128, "linear_dim": 128, "hidden": 128, "intermediate": 128, "layers": 4, "heads": 2}
SIZES |= {"kv_heads": 1, "key_heads": 1, "value_heads": 2, "shards": 1}
TOKENIZER = "tokenizer_config.json"
BESIDE = ("mlx-drafter", "mmproj")


@pytest.fixture
def folder(zoo_copy: Callable[..., Path]) -> Path:
    return zoo_copy("qwen3_5", **SIZES)


def targets(root: Path) -> list[Target]:
    asked = {"mlx": MlxOptions(bits=8), "fp8": Fp8Options(), "nvfp4": Nvfp4Options()}
    folders = [Target(options, root / name, verify=None) for name, options in asked.items()]
    return [Target(GgufOptions(("BF16",)), root / "gguf", verify=None), *folders]


def written(diagnosis: Diagnosis, root: Path) -> dict[str, Path]:
    items = steps.write(plan(targets(root), diagnosis), diagnosis, threads=2)
    return {item.target.out.name: item.path for item in items if item.plan.kind not in BESIDE}


def test_a_hidden_template_an_unnamed_end_and_one_behind_every_prompt(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / TOKENIZER).read_text())
    text = settings.pop("chat_template")
    eos = settings.pop("eos_token")
    (folder / "chat_template.jinja").write_text(text)
    (folder / TOKENIZER).write_text(json.dumps({**settings, "chat_template": None, "add_eos_token": True}))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    document = json.loads((folder / "tokenizer.json").read_text())
    number = next(row["id"] for row in document["added_tokens"] if row["content"] == eos)
    behind = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": eos, "type_id": 0}}]
    special = {eos: {"id": eos, "ids": [number], "tokens": [eos]}}
    pair = [*behind, {"Sequence": {"id": "B", "type_id": 1}}]
    processor = {"type": "TemplateProcessing", "single": behind, "pair": pair, "special_tokens": special}
    (folder / "tokenizer.json").write_text(json.dumps({**document, "post_processor": processor}))
    diagnosis = diagnose(LocalCheckpoint(folder))
    view = diagnosis.repaired.view()
    for name, path in written(diagnosis, tmp_path / "out").items():
        if name == "gguf":
            found = read_gguf(path).metadata
            assert found["tokenizer.ggml.eos_token_id"] == number
            assert found["tokenizer.ggml.add_eos_token"] is False
            assert found["tokenizer.chat_template"] == text
        else:
            files = {each.name: each.read_bytes() for each in path.iterdir() if each.suffix != ".safetensors"}
            assert number in folder_ends(files, json.loads(files["config.json"])), name
            assert json.loads(files[TOKENIZER])["eos_token"] == eos
            assert json.loads(files[TOKENIZER])["add_eos_token"] is False
            single = json.loads(files["tokenizer.json"])["post_processor"]["single"]
            assert "SpecialToken" not in single[-1]
        about = layout_of(OnDisk(path)).describe(OnDisk(path))
        kept = template_kept(view, about.templates)
        assert kept is not None
        assert kept.status is Status.PASS, name


def test_no_end_anywhere_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    change_json(folder, TOKENIZER, lambda c: {**c, "eos_token": None, "chat_template": ""})
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    for name in ("generation_config.json", "config.json"):
        change_json(folder, name, _no_ends)
    with pytest.raises(InputError, match="which token ends a text"):
        plan(targets(tmp_path / "out"), diagnose(LocalCheckpoint(folder)))
    assert not (tmp_path / "out").exists()


def _no_ends(value: dict[str, Any]) -> dict[str, Any]:
    inner = value.get("text_config")
    kept = {key: each for key, each in value.items() if key != "eos_token_id"}
    return {**kept, "text_config": _no_ends(inner)} if isinstance(inner, dict) else kept


@pytest.mark.parametrize("number", [torch.nan, -torch.inf])
@pytest.mark.parametrize(
    "ending", ["layers.0.input_layernorm.weight", "A_log", "embed_tokens.weight", "mtp.fc.weight"]
)
def test_a_source_with_a_number_that_is_none_is_refused_by_name(
    folder: Path, tmp_path: Path, ending: str, number: float
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = next(name for name in tensors if name.endswith(ending))
        tensors[name].view(-1)[-1] = number
        return tensors

    change_tensors(folder, spoil)
    diagnosis = diagnose(LocalCheckpoint(folder))
    for target in targets(tmp_path / "out"):
        with pytest.raises(InputError, match="NaN or infinite") as refusal:
            steps.write(plan([target], diagnosis), diagnosis, threads=1)
        assert ending in str(refusal.value)
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.suffix in (".gguf", ".safetensors")]
    assert left == []
