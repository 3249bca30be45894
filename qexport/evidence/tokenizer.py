"""The model's own tokenizer, for calibration: ``tokenizer.json``, or ``tokenizer.model`` where that is all.

Two ways to read a text: as text, where the names of special tokens are only letters (llama.cpp's
``parse_special = false``), and as a rendered conversation, where they are the tokens.

``tokenizers`` is what the model was trained with and is taken for the truth. llama.cpp differs from it in
that it does not normalize (NFC) and in a few pre-tokenizers, which qexport's verification looks for.

A long text is tokenized a window at a time, with the ids that it has as a whole (:func:`tokens_of`): a
tokenizer keeps some 150 bytes for every byte that it is given, 3 GB for a text of 20 MB. What a token is
depends on its surroundings only; so windows overlap, and one is left for the next where both see the same
tokens at the same places, many to either side. Where they see none (a megabyte of one letter), the window
grows, in the worst case to the whole text.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from qexport.errors import EnvironmentProblem, InputError
from qexport.evidence.chat import json_file, special_words
from qexport.optional import command_for

WINDOW = 1 << 18
"""Characters that are tokenized at a time, where all of a text is wanted."""
_SMALLEST = 1 << 16
_OVERLAP = 1 << 13
_ALIKE = 32  # tokens before and after the place where one window is left for the next

Token = tuple[int, int, int]
"""Id, where it begins, where it ends; in characters."""


class TextTokenizer(Protocol):
    """Text to ids.

    Attributes:
        bos: the id that the tokenizer puts before a text, ``None`` where it puts none.
        size: ids are below it.
    """

    bos: int | None
    size: int

    def text(self, text: str, at_most: int | None = None) -> Sequence[int]:
        """Ids of a plain text, with what the tokenizer adds around it.

        Args:
            at_most: how many are wanted; of a long text the rest need not be found out.
        """
        ...

    def chat(self, text: str) -> list[int]:
        """Ids of a rendered conversation: special tokens are found, nothing is added."""
        ...

    def id_of(self, word: str) -> int | None:
        """The id of a token by its name."""
        ...


def model_tokenizer(files: Mapping[str, bytes], label: str) -> TextTokenizer:
    """The tokenizer in a model's small files.

    Raises:
        InputError: there is none, or it cannot be read.
        EnvironmentProblem: it is a ``tokenizer.model`` and sentencepiece is not installed.
    """
    if "tokenizer.json" in files:
        return _Tokenizers(files, label)
    if "tokenizer.model" in files:
        return _SentencePiece(files, label)
    raise InputError(
        f"{label} has no tokenizer: neither tokenizer.json nor tokenizer.model",
        hint="Copy them from the base model, or calibrate with records of input_ids.",
    )


class _Tokenizers(TextTokenizer):
    """``tokenizer.json``."""

    def __init__(self, files: Mapping[str, bytes], label: str) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
        except Exception as error:  # the library raises nothing more special
            raise InputError(
                f"{label}: tokenizer.json cannot be read: {error}", hint="Copy it again from the base model."
            ) from error
        # A training script may have left its own limits in the file.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
        self.size = max(self.size, 1 + max(self._tokenizer.get_vocab().values(), default=0))
        self.bos, self._missing = self._find_bos(files, label)

    def _find_bos(self, files: Mapping[str, bytes], label: str) -> tuple[int | None, bool]:
        """What the post-processor puts in front; without one, what tokenizer_config.json asks for."""
        bare = self._ids("a", add=False)
        added = self._ids("a", add=True)
        if added[: len(bare)] != bare:
            return added[0], False
        if self._tokenizer.post_processor is None:
            config = json_file(files, "tokenizer_config.json", label)
            word = special_words(files, label).get("bos_token")
            if config.get("add_bos_token") is True and word is not None:
                return self.id_of(word), True
        return None, False

    def _ids(self, text: str, *, add: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add).ids)

    def text(self, text: str, at_most: int | None = None) -> Sequence[int]:
        self._tokenizer.encode_special_tokens = True
        if len(text) > _window(at_most):
            bare, added = self._ids("a", add=False), self._ids("a", add=True)
            at = next(at for at in range(len(added)) if added[at : at + len(bare)] == bare)
            ids = [*added[:at], *tokens_of(text, self._tokens, at_most=at_most), *added[at + len(bare) :]]
        else:
            ids = self._ids(text, add=True)
        return [self.bos, *ids] if self._missing and self.bos is not None else ids

    def _tokens(self, text: str) -> list[tuple[int, int, int]]:
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return [(number, *span) for number, span in zip(found.ids, found.offsets, strict=True)]

    def chat(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = False
        return self._ids(text, add=False)

    def id_of(self, word: str) -> int | None:
        found = self._tokenizer.token_to_id(word)
        return None if found is None else int(found)


class _SentencePiece(TextTokenizer):
    """``tokenizer.model``, with tokens that were added beside it."""

    def __init__(self, files: Mapping[str, bytes], label: str) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise EnvironmentProblem(
                f"{label} has only a tokenizer.model, which needs sentencepiece",
                hint=command_for("sentencepiece"),
            ) from None
        try:
            self._pieces: Any = SentencePieceProcessor(model_proto=files["tokenizer.model"])
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                f"{label}: tokenizer.model cannot be read: {error}", hint="Copy it again from the base model."
            ) from None
        config = json_file(files, "tokenizer_config.json", label)
        count = self._pieces.get_piece_size()
        self._special = {
            self._pieces.id_to_piece(number): number
            for number in range(count)
            if self._pieces.is_control(number)
        }
        self._special |= {
            word: number
            for word, number in json_file(files, "added_tokens.json", label).items()
            if isinstance(number, int)
        }
        for number, row in (config.get("added_tokens_decoder") or {}).items():
            if isinstance(row, Mapping) and isinstance(row.get("content"), str) and str(number).isdigit():
                self._special[row["content"]] = int(number)
        self.size = max(count, 1 + max(self._special.values(), default=0))
        # llama.cpp adds it to SentencePiece models unless they say no; so does transformers.
        adds = config.get("add_bos_token", True) and self._pieces.bos_id() >= 0
        self.bos = int(self._pieces.bos_id()) if adds else None

    def text(self, text: str, at_most: int | None = None) -> Sequence[int]:
        if len(text) > _window(at_most):
            ids: Sequence[int] = tokens_of(text, self._tokens, at_most=at_most)
        else:
            ids = list(map(int, self._pieces.encode(text)))
        return ids if self.bos is None else [self.bos, *ids]

    def _tokens(self, text: str) -> list[tuple[int, int, int]]:
        found = self._pieces.encode(text, out_type="immutable_proto")
        return [(int(piece.id), int(piece.begin), int(piece.end)) for piece in found.pieces]

    def chat(self, text: str) -> list[int]:
        words = sorted(self._special, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, words)) + ")", text) if words else [text]
        ids: list[int] = []
        for part in parts:
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids += map(int, self._pieces.encode(part))
        return ids

    def id_of(self, word: str) -> int | None:
        if word in self._special:
            return self._special[word]
        found = int(self._pieces.piece_to_id(word))
        return None if found == self._pieces.unk_id() else found


def _window(at_most: int | None) -> int:
    """Characters that are tokenized at a time: two windows are needed for the first of them."""
    return WINDOW if at_most is None else min(WINDOW, max(_SMALLEST, 4 * at_most))


def tokens_of(
    text: str,
    encode: Callable[[str], Sequence[Token]],
    *,
    window: int | None = None,
    overlap: int = _OVERLAP,
    at_most: int | None = None,
) -> array[int]:
    """The ids of ``text``, as ``encode`` gives them for all of it.

    Args:
        encode: tokens of a text, without any that do not come from it.
        at_most: as soon as there are so many, no more are found out.
    """
    ids = array("i")
    window = window or _window(at_most)
    begin, first, size = 0, 0, window
    here = encode(text[:size])
    while begin + size < len(text):
        end = begin + size
        after = end - overlap
        there = [(i, b + after, e + after) for i, b, e in encode(text[after : after + window])]
        mine = [(i, b + begin, e + begin) for i, b, e in here[first:]]
        place = _meeting(mine, there, after + overlap // 4, end - overlap // 4)
        if place is None:
            size *= 2
            here = encode(text[begin : begin + size])
            continue
        ids.extend(token[0] for token in mine[: place[0]])
        if at_most is not None and len(ids) >= at_most:
            return ids
        begin, first, size = after, place[1], window
        here = [(i, b - after, e - after) for i, b, e in there]
    ids.extend(token[0] for token in here[first:])
    return ids


def _meeting(one: Sequence[Token], other: Sequence[Token], low: int, high: int) -> tuple[int, int] | None:
    """Indexes in both from which, and before which, they have the same tokens."""
    starts = {token: at for at, token in enumerate(other)}
    for at in range(max(_ALIKE, bisect_left(one, low, key=lambda token: token[1])), len(one) - _ALIKE):
        token = one[at]
        if token[1] >= high:
            return None
        place = starts.get(token, -1)
        if place < _ALIKE or token[1] < one[at - 1][2]:  # several tokens of one character: not between them
            continue
        if one[at - _ALIKE : at + _ALIKE] == other[place - _ALIKE : place + _ALIKE]:
            return at, place
    return None
