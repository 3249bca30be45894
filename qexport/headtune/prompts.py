"""What a model is asked, so that it writes text of its own: conversations without their last answer, or the
first words of a text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError
from qexport.evidence.records import Chat, Ids, Record, Text
from qexport.evidence.tokenizer import model_tokenizer
from qexport.evidence.tokens import RecordReader
from qexport.headtune.text import domain_of

if TYPE_CHECKING:
    from qexport.evidence.corpus import Corpus
    from qexport.families.view import ModelView


_BEGINNING = 48
"""Tokens of a text that are given; the model goes on."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: ``messages`` of a conversation, or ``ids`` (and their ``text``) that are gone on with."""

    domain: str
    messages: tuple[Mapping[str, Any], ...] = ()
    ids: tuple[int, ...] = field(default=(), repr=False)
    text: str = field(default="", repr=False)

    @property
    def turns(self) -> list[dict[str, str]]:
        """The messages, with nothing but who says what."""
        return [{key: str(turn[key]) for key in ("role", "content")} for turn in self.messages]


def prompts_of(corpus: Corpus, view: ModelView, *, chats: bool) -> list[Prompt]:
    """The prompts of a corpus.

    Args:
        chats: the model has a chat template; else conversations are texts like others.

    Raises:
        InputError: there is none.
    """
    tokenizer = model_tokenizer(view.files, view.label)
    reader = RecordReader(tokenizer, view.files, view.label)
    found = [each for record in corpus.records for each in _prompts(record, reader, chats)]
    if not found:
        raise InputError(
            f"{corpus.label} has no prompt: no conversation, and no text of {_BEGINNING} tokens",
            hint='A prompt is a line such as {"messages": [{"role": "user", "content": "..."}]}.',
        )
    return found


def _prompts(record: Record, reader: RecordReader, chats: bool) -> Iterator[Prompt]:
    domain, content = domain_of(record), record.content
    if isinstance(content, Chat) and chats:
        turns = list(content.messages)
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        # Tools need the template's own form, which a server's endpoint does not take from everybody.
        if turns and turns[-1]["role"] in ("user", "tool") and not content.tools:
            yield Prompt(domain, messages=tuple(turns))
        return
    ids = tuple(reader.ids(record))
    if isinstance(content, Ids) and record.prompt:
        yield Prompt(domain, ids=ids[: record.prompt])
        return
    words = content.text if isinstance(content, Text) else ""
    far = len(ids) if isinstance(content, Text) and not record.category else _BEGINNING
    for at in range(0, far, 10 * _BEGINNING):
        part = ids[at : at + _BEGINNING]
        if len(part) == _BEGINNING:
            yield Prompt(domain, ids=part, text=_beginning(words, at, len(ids)))


def _beginning(text: str, at: int, tokens: int) -> str:
    """About the same place of a text in characters, for servers that take no ids."""
    each = len(text) / max(1, tokens)
    return text[int(at * each) : int((at + _BEGINNING) * each)]


def seed_of(seed: int, number: int, sample: int) -> int:
    """The seed of an answer: the same whoever asks, and in whatever order."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {sample}".encode()).digest()[:4], "big") >> 1
