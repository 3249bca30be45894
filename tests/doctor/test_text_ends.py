"""Where a text ends: named wherever it was named only elsewhere, and put behind no prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doctor_bench import ids, opened, repair
from quirks_planted import change_json, change_text_config

from qexport.doctor import diagnose

TOKENIZER, MAP, GENERATION = "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"
Config = dict[str, Any]


def settings_of(folder: Path) -> Config:
    found: Config = json.loads((folder / TOKENIZER).read_text())
    return found


def without(key: str) -> Callable[[Config], Config]:
    return lambda value: {k: v for k, v in value.items() if k != key}


def forget(folder: Path, *, keep: str = "") -> int:
    """No file names an end of text but ``keep``; returns the id that ended one."""
    eos = json.loads((folder / GENERATION).read_text())["eos_token_id"]
    change_json(folder, TOKENIZER, without("eos_token"))
    (folder / MAP).unlink(missing_ok=True)
    if keep != GENERATION:
        change_json(folder, GENERATION, without("eos_token_id"))
    if keep != "config.json":
        change_text_config(folder, without("eos_token_id"))
    first: int = eos[0] if isinstance(eos, list) else eos
    return first


@pytest.mark.parametrize("name", ["qwen3_5", "llama3", "llama", "gemma3"])
@pytest.mark.parametrize("keep", [GENERATION, "config.json", MAP])
@pytest.mark.parametrize("style", ["alone", "a list", "as text"])
def test_an_end_that_only_another_file_names(
    zoo_copy: Callable[..., Path], tmp_path: Path, name: str, keep: str, style: str
) -> None:
    folder = zoo_copy(name)
    named = settings_of(folder)["eos_token"]
    number = forget(folder, keep=keep)
    if keep == MAP:
        token = {"content": named, "lstrip": False, "rstrip": False} if style == "a list" else named
        (folder / MAP).write_text(json.dumps({"eos_token": token}))
    else:
        value = {"alone": number, "a list": [number], "as text": str(number)}[style]
        change = change_text_config if keep == "config.json" else lambda f, c: change_json(f, GENERATION, c)
        change(folder, lambda config: {**config, "eos_token_id": value})
    found, out = repair(folder, tmp_path / "out")
    assert "eos.unnamed" in ids(found, "repaired")
    written = settings_of(out)["eos_token"]
    assert json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    texts = {
        row["id"]: row["content"] for row in json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    }
    assert written == (named if keep == MAP else texts[number])
    ends = json.loads((out / GENERATION).read_text())["eos_token_id"]
    assert number in (ends if isinstance(ends, list) else [ends]) or keep == MAP
    assert "eos.unnamed" not in ids(diagnose(opened(out)))


def test_the_class_knows_the_end(zoo_copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = zoo_copy("llama")
    forget(folder)
    _, out = repair(folder, tmp_path / "out")
    assert settings_of(out)["eos_token"] == "</s>"


def test_no_end_anywhere_is_said(zoo_copy: Callable[..., Path]) -> None:
    folder = zoo_copy("llama3")
    forget(folder)
    change_json(folder, TOKENIZER, lambda c: {**without("chat_template")(c), "eos_token": None})
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert "eos.none" in ids(diagnose(opened(folder)))


def test_a_name_that_is_no_token_counts_as_none(zoo_copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = zoo_copy("qwen3_5")
    change_json(folder, TOKENIZER, lambda c: {**c, "eos_token": "<|nowhere|>"})
    found, out = repair(folder, tmp_path / "out")
    assert "eos.unnamed" in ids(found)
    assert settings_of(out)["eos_token"] == "<|im_end|>"


# --- behind every prompt ------------------------------------------------------------------------------------


def special(name: str) -> Config:
    return {"SpecialToken": {"id": name, "type_id": 0}}


def sequence(name: str) -> Config:
    return {"Sequence": {"id": name, "type_id": 0}}


def template(eos: str, number: int, bos: tuple[str, int] | None = None) -> Config:
    begin = [special(bos[0])] if bos else []
    pair = [*begin, sequence("A"), special(eos), *begin, sequence("B"), special(eos)]
    tokens = {
        name: {"id": name, "ids": [i], "tokens": [name]}
        for name, i in [(eos, number), *([bos] if bos else [])]
    }
    return {
        "type": "TemplateProcessing",
        "single": [*begin, sequence("A"), special(eos)],
        "pair": pair,
        "special_tokens": tokens,
    }


def roberta(eos: str, number: int, bos: tuple[str, int] | None = None) -> Config:
    cls = list(bos or (eos, number))
    ends = {"type": "RobertaProcessing", "sep": [eos, number], "cls": cls}
    return {**ends, "trim_offsets": True, "add_prefix_space": False}


def in_sequence(eos: str, number: int, bos: tuple[str, int] | None = None) -> Config:
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    return {"type": "Sequence", "processors": [level, template(eos, number, bos)]}


@pytest.mark.parametrize("made", [template, roberta, in_sequence])
@pytest.mark.parametrize(("name", "begins"), [("qwen3_5", False), ("llama3", True), ("llama", True)])
def test_no_end_of_text_behind_a_prompt(
    zoo_copy: Callable[..., Path], tmp_path: Path, made: Callable[..., Config], name: str, begins: bool
) -> None:
    from tokenizers import Tokenizer

    folder = zoo_copy(name)
    config = settings_of(folder)
    numbers = {
        row["content"]: row["id"]
        for row in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    }
    eos, bos = config["eos_token"], config.get("bos_token")
    first = (bos, numbers[bos]) if begins else None
    before = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("one two").ids
    change_json(folder, "tokenizer.json", lambda t: {**t, "post_processor": made(eos, numbers[eos], first)})
    change_json(folder, TOKENIZER, lambda c: {**c, "add_eos_token": True})
    spoiled = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert spoiled.encode("one two").ids[-1] == numbers[eos]
    found, out = repair(folder, tmp_path / "out")
    assert "tokenizer.adds_eos" in ids(found, "repaired")
    assert settings_of(out)["add_eos_token"] is False
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    encoded = tokenizer.encode("one two").ids
    assert numbers[eos] not in encoded[1:]
    if begins or made is not roberta:
        assert encoded == before
    assert numbers[eos] not in tokenizer.encode("one", "two").ids[1:]
    assert "tokenizer.adds_eos" not in ids(diagnose(opened(out)))


def test_the_flag_alone(zoo_copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = zoo_copy("llama")
    change_json(folder, TOKENIZER, lambda c: {**c, "add_eos_token": True})
    found, out = repair(folder, tmp_path / "out")
    assert "tokenizer.adds_eos" in ids(found, "repaired")
    assert settings_of(out)["add_eos_token"] is False
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_embeddings_keep_theirs(zoo_copy: Callable[..., Path]) -> None:
    folder = zoo_copy("qwen3")
    change_json(folder, TOKENIZER, lambda c: {**c, "add_eos_token": True})
    (folder / "config_sentence_transformers.json").write_text("{}")
    assert "tokenizer.adds_eos" not in ids(diagnose(opened(folder)))
