"""Tokenizers that are not as they should be: what is padded, left out, noted or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from metadata_cases import edit_json, view_of
from tokenizers import Tokenizer
from zoo_types import Zoo, ZooCopy

from qexport.container.gguf_write import KV
from qexport.errors import InputError
from qexport.families.view import ModelView
from qexport.formats.gguf.tokenizer import token_embedding_rows, tokenizer_metadata
from qexport.formats.gguf.vocabulary import TokenType, looks_special


def metadata(view: ModelView, **options: Any) -> tuple[dict[str, KV], list[str]]:
    notes: list[str] = []
    return tokenizer_metadata(view, notes, **options), notes


def without(view: ModelView, name: str) -> ModelView:
    return replace(view, files={key: value for key, value in view.files.items() if key != name})


def test_tokenizer_larger_than_embedding(zoo: Zoo) -> None:
    view = view_of(zoo("qwen2"), mtp=False)
    small = {**view.config, "vocab_size": 100}
    with pytest.raises(InputError, match="but vocab_size is 100"):
        metadata(replace(view, config=small, text=small))


def test_holes_are_unused(zoo: Zoo) -> None:
    found, _ = metadata(view_of(zoo("qwen2"), mtp=False))
    tokens, types = found["tokenizer.ggml.tokens"].value, found["tokenizer.ggml.token_type"].value
    assert len(tokens) == 416
    assert tokens[415] == "[PAD415]"
    assert types[415] == TokenType.UNUSED
    assert types[tokens.index("<|im_end|>")] == TokenType.CONTROL


def test_no_tokenizer(zoo: Zoo) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        metadata(without(view_of(zoo("qwen2"), mtp=False), "tokenizer.json"))


def test_broken_json(zoo: Zoo) -> None:
    view = view_of(zoo("qwen2"), mtp=False)
    with pytest.raises(InputError, match=r"tokenizer\.json is not JSON"):
        metadata(replace(view, files={**view.files, "tokenizer.json": b"{"}))


def test_name_without_id_or_row_is_left_out(zoo_copy: ZooCopy) -> None:
    folder = zoo_copy("llama3")
    edit_json(folder, "tokenizer_config.json", lambda v: v.update(pad_token="[PAD]"))
    found, notes = metadata(view_of(folder, mtp=False))
    assert "tokenizer.ggml.padding_token_id" not in found
    assert any("'[PAD]'" in note for note in notes)


def test_llama_style_without_model(zoo: Zoo) -> None:
    """Where the converter writes a file that llama.cpp refuses, ours is padded; scores can follow the
    merges."""
    view = without(view_of(zoo("llama", vocab=512), mtp=False), "tokenizer.model")
    plain, notes = metadata(view)
    assert len(plain["tokenizer.ggml.tokens"].value) == 512
    assert set(plain["tokenizer.ggml.scores"].value) == {-1000.0}
    assert any("-1000" in note for note in notes)
    better, notes = metadata(view, scores_from_merges=True)
    assert not any("-1000" in note for note in notes)
    tokens, scores = better["tokenizer.ggml.tokens"].value, better["tokenizer.ggml.scores"].value
    merges = json.loads(view.files["tokenizer.json"])["model"]["merges"]
    assert scores[tokens.index("".join(merges[0]))] == 0.0
    by_score = [t for _, t in sorted((-s, t) for s, t in zip(scores, tokens, strict=True) if s > -1000)]
    made = list(dict.fromkeys("".join(pair) for pair in merges))
    assert by_score == made


def test_qwen35_with_qwen2_rules_is_noted(zoo: Zoo) -> None:
    view = view_of(zoo("qwen3_5"), mtp=True)
    other = view_of(zoo("qwen2"), mtp=False).files["tokenizer.json"]
    pre = {"pre_tokenizer": json.loads(other)["pre_tokenizer"]}
    changed = json.dumps({**json.loads(view.files["tokenizer.json"]), **pre}).encode()
    found, notes = metadata(replace(view, files={**view.files, "tokenizer.json": changed}))
    assert found["tokenizer.ggml.pre"].value == "qwen2"
    assert any("--pre-tokenizer qwen35" in note for note in notes)


def test_tokens_are_those_of_tokenizers(zoo: Zoo) -> None:
    view = view_of(zoo("smollm"), mtp=False)
    found, _ = metadata(view)
    tokenizer = Tokenizer.from_str(view.files["tokenizer.json"].decode())
    tokens = found["tokenizer.ggml.tokens"].value
    assert {text: i for i, text in enumerate(tokens)} == tokenizer.get_vocab(with_added_tokens=True)


def test_gemma_rows(zoo: Zoo) -> None:
    view = view_of(zoo("gemma3"), mtp=False)
    assert token_embedding_rows(view) is None
    tokenizer = json.loads(view.files["tokenizer.json"])
    rows = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])
    assert token_embedding_rows(without(view, "tokenizer.model")) == rows


def test_looks_special() -> None:
    assert all(map(looks_special, ("<|x|>", "<｜x｜>", "<unused12>", "<pad>", "[@BOS@]")))
    assert not any(map(looks_special, ("<tool>", "|x|", "unused1", "")))
