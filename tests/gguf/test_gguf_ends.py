"""Where a GGUF lets a reply end: at every id of the source, and refused where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from metadata_cases import edit_json, view_of
from zoo_types import Zoo, ZooCopy

from qexport.errors import InputError
from qexport.families.view import ModelView
from qexport.formats.gguf.tokenizer import tokenizer_metadata

EOS, EOT, EOM = (f"tokenizer.ggml.{word}_token_id" for word in ("eos", "eot", "eom"))


def metadata(view: ModelView) -> dict[str, Any]:
    return {key: kv.value for key, kv in tokenizer_metadata(view, []).items()}


def unnamed(folder: Path, stops: Any = None, *, config: Any = None) -> ModelView:
    """The folder as it is (no doctor) with no eos_token, and these for ``eos_token_id``."""
    edit_json(folder, "tokenizer_config.json", lambda v: v.pop("eos_token", None))
    for name, value in (("generation_config.json", stops), ("config.json", config)):
        edit_json(folder, name, lambda v, value=value: v.update(eos_token_id=value))
    return view_of(folder, mtp=False)


@pytest.mark.parametrize(
    ("stops", "config", "first"),
    [
        (300, 7, 300),
        ([300, 301], 7, 300),
        (None, 300, 300),
        (None, [300], 300),
        ("300", None, 300),
        (9999, 300, 300),
    ],
)
def test_ids_of_the_configs_in_order(zoo_copy: ZooCopy, stops: Any, config: Any, first: int) -> None:
    found = metadata(unnamed(zoo_copy("qwen2"), stops, config=config if config != 7 else None))
    assert found[EOS] == first


@pytest.mark.parametrize("name", ["qwen2", "llama3"])
@pytest.mark.parametrize("stops", [None, [], "none", 99999, True, {}])
def test_none_is_refused(zoo_copy: ZooCopy, name: str, stops: Any) -> None:
    with pytest.raises(InputError, match="no file says which token ends a text") as refusal:
        metadata(unnamed(zoo_copy(name), stops))
    assert "generation_config.json" in str(refusal.value.hint)


def test_a_sentencepiece_file_has_llama_cpps_own(zoo_copy: ZooCopy) -> None:
    found = metadata(unnamed(zoo_copy("llama")))
    assert EOS not in found  # llama.cpp takes 2, which is </s>
    assert found["tokenizer.ggml.tokens"][2] == "</s>"


def test_more_ends_get_the_other_two_places(zoo: Zoo) -> None:
    """Those that llama.cpp does not know by their text."""
    view = view_of(zoo("qwen2"), mtp=False)
    before = metadata(view)
    tokens = before["tokenizer.ggml.tokens"]
    known, one, two, three = (tokens.index(text) for text in ("<|endoftext|>", "a", "b", "c"))

    def stopping(*ids: int) -> dict[str, Any]:
        generation = json.dumps({"eos_token_id": list(ids)}).encode()
        return metadata(replace(view, files={**view.files, "generation_config.json": generation}))

    assert stopping(before[EOS], known) == before
    found = stopping(before[EOS], known, one, two)
    assert (found[EOS], found[EOT], found[EOM]) == (before[EOS], one, two)
    with pytest.raises(InputError, match="more tokens than a GGUF can name") as refusal:
        stopping(before[EOS], one, two, three)
    assert f"c ({three})" in refusal.value.message


def test_an_id_beyond_the_vocabulary_is_left_out(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("qwen2")
    edit_json(folder, "config.json", lambda v: v.update(pad_token_id=99999))
    edit_json(folder, "tokenizer_config.json", lambda v: v.pop("pad_token", None))
    notes: list[str] = []
    found = tokenizer_metadata(view_of(folder, mtp=False), notes)
    assert "tokenizer.ggml.padding_token_id" not in found
    assert any("outside the vocabulary" in note for note in notes)


@pytest.mark.parametrize("pad", ["<|im_end|>", {"content": "<|im_end|>", "lstrip": False}])
def test_padding_that_is_the_end(zoo_copy: ZooCopy, pad: Any) -> None:
    folder = zoo_copy("qwen2")
    edit_json(folder, "tokenizer_config.json", lambda v: v.update(pad_token=pad, eos_token=pad))
    found = metadata(view_of(folder, mtp=False))
    assert found[EOS] == found["tokenizer.ggml.padding_token_id"]
