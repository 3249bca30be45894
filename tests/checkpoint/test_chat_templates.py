"""Chat templates from every place that may keep them, beside what transformers makes of the same files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qexport.checkpoint.chat_templates import read_templates
from qexport.errors import InputError

ONE, OTHER = "{{ messages[0].content }}", "other {{ messages[0].content }}"
JINJA, FOLDER = "chat_template.jinja", "additional_chat_templates/"


def files(jinja: str | None = None, inline: Any = ..., processor: Any = ..., **more: str) -> dict[str, bytes]:
    found = {} if jinja is None else {JINJA: jinja.encode()}
    for name, value in (("tokenizer_config.json", inline), ("chat_template.json", processor)):
        if value is not ...:
            found[name] = json.dumps({"chat_template": value}).encode()
    return found | {f"{FOLDER}{name}.jinja": text.encode() for name, text in more.items()}


@pytest.mark.parametrize(
    ("given", "default", "hollow"),
    [
        (files(ONE), ONE, ()),
        (files(ONE, OTHER), ONE, ()),
        (files(ONE, None), ONE, ("tokenizer_config.json",)),
        (files(ONE, ""), ONE, ("tokenizer_config.json",)),
        (files(ONE, []), ONE, ()),
        (files(" \n", OTHER), OTHER, (JINJA,)),
        (files(None, None, ONE), ONE, ("tokenizer_config.json",)),
        (files(ONE, processor=None), ONE, ("chat_template.json",)),
        (files(None, OTHER, ONE), OTHER, ()),
        (files(None, [{"name": "default", "template": ""}], ONE), ONE, ("tokenizer_config.json",)),
        (files(None, {"default": ONE, "tool_use": OTHER}), ONE, ()),
        (files(None, 7), None, ("tokenizer_config.json",)),
        (files(None, None), None, ("tokenizer_config.json",)),
        ({}, None, ()),
    ],
)
def test_null_and_empty_are_absent(
    given: dict[str, bytes], default: str | None, hollow: tuple[str, ...]
) -> None:
    found = read_templates(given, "tiny")
    assert (found.default, found.hollow) == (default, hollow)


@pytest.mark.parametrize(
    ("named", "chosen"),
    [
        ({"tool_use": OTHER}, "tool_use"),
        ({"rag": OTHER, "tool_use": OTHER, "chat": ONE}, "chat"),
        ({"rag": OTHER, "thinking": ONE}, "rag"),
        ({"rag": OTHER, "default": ONE}, "default"),
    ],
)
def test_named_templates_without_a_default(named: dict[str, str], chosen: str) -> None:
    rows = [{"name": name, "template": text} for name, text in named.items()]
    given: dict[str, bytes]
    for given in (files(None, rows), files(None, named), *([] if "default" in named else [files(**named)])):
        found = read_templates(given, "tiny")
        assert (found.chosen, found.default) == (chosen, named[chosen])
        assert found.named == named


def test_the_folder_counts_as_the_jinja_files() -> None:
    found = read_templates(files(ONE, OTHER, tool_use=OTHER), "tiny")
    assert found.named == {"default": ONE, "tool_use": OTHER}
    assert list(found.places) == [JINJA, "tokenizer_config.json"]


@pytest.mark.parametrize("given", [{JINJA: b"\xff"}, {"tokenizer_config.json": b"[1"}])
def test_files_that_cannot_be_read(given: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match=r"^tiny: "):
        read_templates(given, "tiny")


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [files(ONE, OTHER), files(ONE, None), files(None, ONE), files(ONE, OTHER, tool_use=OTHER),
     files(None, [{"name": "default", "template": ONE}, {"name": "tool_use", "template": OTHER}])],
)  # fmt: skip
def test_the_order_is_that_of_transformers(tmp_path: Path, given: Mapping[str, bytes]) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    (tmp_path / FOLDER).mkdir()
    config = json.loads(given.get("tokenizer_config.json", b"{}")) | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }
    small = {
        **given,
        "tokenizer.json": Tokenizer(WordLevel({"a": 0}, "a")).to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }
    for name, data in small.items():
        (tmp_path / name).write_bytes(data)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert read_templates(given, "tiny").default == theirs.get_chat_template()
