"""``tokenizer.json``, parsed once: who needs it, for whatever format, gets the same value.

Parsing a vocabulary of a quarter of a million tokens takes the better part of a second, and looking it over
as much again; an export of four types would do both a dozen times.

``added_tokens`` name ids, but the library numbers added tokens itself, after the vocabulary and in their
order (``AddedVocabulary::add_tokens`` in
https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/tokenizer/added_vocabulary.rs). Where the
two differ, readers of the file and users of the library take the same number for different tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

from qexport.checkpoint.config import parse_json
from qexport.errors import InputError


@dataclass(frozen=True, eq=False)
class TokenizerJson:
    """A parsed ``tokenizer.json``. All who use it share ``document``: nobody may change it."""

    document: Mapping[str, Any] = field(repr=False)

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """The model's own tokens, by text.

        Raises:
            ValueError: there is no vocabulary, or one that is not texts and whole numbers.
        """
        model = self.document.get("model")
        vocab = model.get("vocab") if isinstance(model, Mapping) else None
        if isinstance(vocab, list):  # Unigram: [piece, score]
            if not all(isinstance(row, list) and row for row in vocab):
                raise ValueError("a row of the vocabulary is not [piece, score]")
            vocab = {row[0]: number for number, row in enumerate(vocab)}
        if vocab is None:
            vocab = {}
        if not isinstance(vocab, Mapping) or not _are_ids(vocab):
            raise ValueError("the vocabulary is not texts with their numbers")
        return vocab

    @cached_property
    def added(self) -> Sequence[Mapping[str, Any]]:
        """The rows of ``added_tokens``: each an object with ``content`` and ``id``.

        Raises:
            ValueError: one is not.
        """
        rows = self.document.get("added_tokens") or []
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise ValueError("added_tokens is not a list of objects")
        if not all(row.get("content") and _are_ids({row["content"]: row.get("id")}) for row in rows):
            raise ValueError("a row of added_tokens has no text or no number")
        return rows

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Every token's id, as the file has it. Raises ValueError where there is no usable vocabulary."""
        return {**self.vocabulary, **{row["content"]: row["id"] for row in self.added}}

    @cached_property
    def contradictions(self) -> Sequence[str]:
        """What the file says of one token or one id in two ways, as clauses."""
        texts: dict[int, str] = {}
        found: list[str] = []
        listed: dict[str, Mapping[str, Any]] = {}
        for text, number in self.vocabulary.items():
            first = texts.setdefault(number, text)
            if first != text:
                found.append(f"{first!r} and {text!r} both have the id {number}")
        for row in self.added:
            text, number = row["content"], row["id"]
            before = listed.setdefault(text, row)
            other = self.vocabulary.get(text, before["id"])
            if other != number:
                found.append(f"{text!r} has the ids {other} and {number}")
            elif added_flags(before) != added_flags(row):
                found.append(f"{text!r} has the id {number} twice, with different flags")
            elif (first := texts.setdefault(number, text)) != text:
                found.append(f"{first!r} and {text!r} both have the id {number}")
        return found

    @cached_property
    def renumbered(self) -> Mapping[str, int]:
        """The ids that the library gives added tokens, where the file has others."""
        numbers = library_ids(self.vocabulary, [row["content"] for row in self.added])
        return {row["content"]: n for row in self.added if (n := numbers[row["content"]]) != row["id"]}


_KEPT: dict[bytes, TokenizerJson] = {}
_MOST = 3  # a model's as it is and as it is repaired, and that of the base its head comes from
_LOCK = Lock()


def tokenizer_json(data: bytes, what: str) -> TokenizerJson:
    """``tokenizer.json`` from its bytes, called ``what`` in messages; the same bytes are parsed once.

    Raises:
        InputError: it is not a JSON object, or one object in it says one thing in two ways.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        loaded = dict(pairs)
        if len(loaded) != len(pairs):
            for name, value in pairs:
                if loaded[name] != value:
                    hint = "Copy it again from the base model."
                    raise InputError(f"{what} has {name!r} twice, with different values.", hint=hint)
        return loaded

    found = _KEPT.get(data)
    return found or keep_parsed(data, TokenizerJson(parse_json(data, what, pairs=once)))


def keep_parsed(data: bytes, parsed: TokenizerJson) -> TokenizerJson:
    """Remember what ``data`` says, for whoever has made it and need not parse it again."""
    with _LOCK:
        while len(_KEPT) >= _MOST:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[data] = parsed
    return parsed


def library_ids(vocabulary: Mapping[str, int], added: Sequence[str]) -> dict[str, int]:
    """The ids that the ``tokenizers`` library gives added tokens."""
    ids: dict[str, int] = {}
    following = len(vocabulary)
    for text in added:
        if text in ids:
            continue
        ids[text] = vocabulary.get(text, following)
        following += text not in vocabulary
    return ids


def added_flags(row: Mapping[str, Any]) -> dict[str, bool]:
    """How an added token is cut out of a text, with the library's defaults."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    flags = {"normalized": not row.get("special", False), **flags}
    return {key: bool(row.get(key, default)) for key, default in flags.items()}


def _are_ids(table: Mapping[Any, Any]) -> bool:
    texts, numbers = set(map(type, table)), set(map(type, table.values()))  # a quarter of a million of each
    return texts <= {str} and numbers <= {int} and min(table.values(), default=0) >= 0
