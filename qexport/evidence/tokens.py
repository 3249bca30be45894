"""From a corpus to chunks of token ids, the same on every machine.

A plain text goes the way of llama.cpp's llama-imatrix: tokenized once and as a whole, cut into chunks, the
rest dropped, and where the model begins a text with its bos token, the first token of each chunk replaced by
it (https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/imatrix.cpp). It wants two chunks; one is
enough here.

Records are put in an order drawn from the seed, the categories of the built-in corpus taking turns so that
each has about as many tokens, and the stream of them is cut likewise. Records of ids are used as they are: no
bos token is put anywhere.
"""

from __future__ import annotations

import hashlib
from array import array as packed
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from qexport.errors import InputError, UsageProblem
from qexport.evidence.chat import ChatRenderer, How
from qexport.evidence.corpus import Corpus, lot
from qexport.evidence.records import Chat, Ids, Record, Text
from qexport.evidence.tokenizer import TextTokenizer, model_tokenizer

if TYPE_CHECKING:
    import numpy as np


BUILTIN_TOKENS = 1 << 17
"""How much of the built-in corpus is read where no amount is given."""
# llama-quantize keeps the name of the data in a fixed field of 128 bytes, the last of them zero.
_DATASET_BYTES = 127


@dataclass(frozen=True)
class Chunks:
    """Token ids to run, and what to say about them.

    Attributes:
        ids: int32 ``(chunks, size)``.
        label: the corpus's label.
        corpus_sha256: the corpus's hash.
        available: tokens that were read, until there were enough; whole chunks within the limit were kept.
        seed: the records' order; ``None`` for plain text, which has its own.
        bos: the id at every chunk's start, ``None`` where none was put.
        categories: tokens read by category; one category, called "", where there are none.
        chats: conversations by how they were rendered; only those that were read.
        fallback_reason: why the first was not rendered as it is, empty if all were.
    """

    ids: np.ndarray = field(repr=False)
    label: str
    corpus_sha256: str
    available: int
    seed: int | None
    bos: int | None
    categories: Mapping[str, int]
    chats: Mapping[How, int]
    fallback_reason: str = ""

    @property
    def tokens(self) -> int:
        return int(self.ids.size)

    @property
    def size(self) -> int:
        """Tokens in a chunk."""
        return int(self.ids.shape[1])

    @cached_property
    def sha256(self) -> str:
        """Of the ids, as little-endian int32."""
        return hashlib.sha256(self.ids.astype("<i4").tobytes()).hexdigest()

    @property
    def dataset(self) -> str:
        """What GGUF metadata says was read: name, start of its hash, tokens; at most 127 bytes."""
        facts = f" sha256:{self.corpus_sha256[:16]} {self.tokens} tokens"
        room = _DATASET_BYTES - len(facts)
        name = " ".join(self.label.split()).encode()
        return name[:room].decode(errors="ignore") + facts


def tokenize(
    corpus: Corpus,
    files: Mapping[str, bytes],
    *,
    tokens: int | None = None,
    chunk: int = 512,
    seed: int = 0,
    vocab_size: int | None = None,
    model: str = "the model",
) -> Chunks:
    """Chunks of ``chunk`` token ids, at most ``tokens`` in all.

    Args:
        files: the model's small files by name.
        tokens: the most to read; ``None``: all of a file, :data:`BUILTIN_TOKENS` of the built-in corpus.
        vocab_size: rows of the model's embedding; ids from there on are refused. ``None``: the tokenizer's.
        model: what to call the model in errors.

    Raises:
        InputError: less than a chunk, ids beyond the vocabulary, no usable tokenizer.
        UsageProblem: ``tokens`` is less than a chunk.
        EnvironmentProblem: an optional package is needed to read the corpus.
    """
    import numpy as np

    if chunk < 2:
        raise UsageProblem(f"a chunk of {chunk} tokens is too short", hint="512 is usual.")
    if tokens is None and corpus.kind == "built-in":
        tokens = max(BUILTIN_TOKENS, chunk)
    if tokens is not None and tokens < chunk:
        raise UsageProblem(
            f"{tokens} tokens are less than one chunk of {chunk}", hint=f"Ask for {chunk} or more."
        )
    plain = [record.content for record in corpus.records if not isinstance(record.content, Ids)]
    given = len(plain) < len(corpus.records)
    tokenizer = model_tokenizer(files, model) if plain or "tokenizer.json" in files else None
    reader = RecordReader(tokenizer, files, model, at_most=tokens if corpus.kind == "text" else None)

    pieces: list[Sequence[int]] = []
    available = 0
    categories: dict[str, int] = {}
    for record, ids in in_order(corpus, reader, seed):
        pieces.append(packed("i", ids))
        available += len(ids)
        categories[record.category] = categories.get(record.category, 0) + len(ids)
        if tokens is not None and available >= tokens:
            break
    count = min(available, available if tokens is None else tokens) // chunk
    if count == 0:
        raise InputError(
            f"{corpus.label} has {available} tokens, less than one chunk of {chunk}",
            hint="Give a longer text; what is measured on one needs tens of thousands.",
        )
    array = np.concatenate([np.asarray(piece, np.int64) for piece in pieces])
    array = array[: count * chunk].reshape(count, chunk)
    _check_ids(corpus.label, array, vocab_size or (tokenizer.size if tokenizer else None), model)
    bos = None if tokenizer is None or given else tokenizer.bos
    if bos is not None:
        array[:, 0] = bos
    return Chunks(
        ids=array.astype(np.int32),
        label=corpus.label,
        corpus_sha256=corpus.sha256,
        available=available,
        seed=None if corpus.kind == "text" else seed,
        bos=bos,
        categories=categories,
        chats=dict(reader.renderer.counts) if reader.renderer else {},
        fallback_reason=reader.fallback_reason,
    )


class RecordReader:
    """Turns one record into ids, ``at_most`` so many; conversations need a renderer, made with the first.

    Args:
        tokenizer: of the model; ``None`` where all records are ids.
        files: the model's small files; ``model`` is what to call it in errors.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer | None,
        files: Mapping[str, bytes],
        model: str,
        *,
        at_most: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._files = files
        self._model = model
        self._at_most = at_most
        self.renderer: ChatRenderer | None = None

    @property
    def fallback_reason(self) -> str:
        """Why the first conversation was not rendered as it is; empty if all were."""
        counts = self.renderer.counts if self.renderer else {}
        return self.renderer.reason if self.renderer and sum(counts.values()) > counts["template"] else ""

    def ids(self, record: Record) -> Sequence[int]:
        """The record's ids."""
        content = record.content
        if isinstance(content, Ids):
            return content.ids
        assert self._tokenizer is not None
        if isinstance(content, Text):
            return self._tokenizer.text(content.text, self._at_most)
        return self._chat(content, self._tokenizer)

    def _chat(self, chat: Chat, tokenizer: TextTokenizer) -> Sequence[int]:
        if self.renderer is None:
            thinks = tokenizer.id_of("<think>") is not None
            self.renderer = ChatRenderer(self._files, thinks=thinks, label=self._model)
        text, how = self.renderer.render(chat)
        return tokenizer.text(text) if how == "plain" else tokenizer.chat(text)


def in_order(corpus: Corpus, reader: RecordReader, seed: int) -> Iterator[tuple[Record, Sequence[int]]]:
    """Records with their ids, the category with the fewest tokens so far first."""
    if corpus.kind == "text":
        yield from ((record, reader.ids(record)) for record in corpus.records)
        return
    waiting: dict[str, list[Record]] = {}
    for number in sorted(range(len(corpus.records)), key=lambda number: lot(seed, number), reverse=True):
        record = corpus.records[number]
        waiting.setdefault(record.category, []).append(record)
    taken = dict.fromkeys(sorted(waiting), 0)
    while waiting:
        category = min(waiting, key=lambda name: (taken[name], name))
        record = waiting[category].pop()
        if not waiting[category]:
            del waiting[category]
        ids = reader.ids(record)
        taken[category] += len(ids)
        yield record, ids


def _check_ids(label: str, ids: np.ndarray, size: int | None, model: str) -> None:
    if size is not None and ids.size and int(ids.max()) >= size:
        raise InputError(
            f"{label} has the token id {int(ids.max())}; the vocabulary of {model} has {size}",
            hint="The corpus was tokenized for another model, or the tokenizer belongs to another one.",
        )
