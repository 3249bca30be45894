"""Text for judging and tuning a head: documents with a domain and a prompt, cut into chunks of one split.

Documents are what is drawn by lot, never chunks: what a head is judged on must not lie beside what it was
tuned on. Several answers to one prompt are one document here. A document goes to a split by the hash of what
it is, so that the same text divides alike on every machine.

Documents of a split are put one behind the other, as calibration does, so that no place of a chunk is wasted;
drafts that reach over the end of one are not counted. The prompt of a conversation is read and not counted:
no runtime drafts it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.evidence.records import Chat, Ids, Record, Text
from qexport.evidence.tokenizer import model_tokenizer
from qexport.evidence.tokens import RecordReader, in_order

if TYPE_CHECKING:
    import numpy as np

    from qexport.evidence.corpus import Corpus
    from qexport.families.view import ModelView


OWN = "text"
"""The domain of a text that names none."""
SPLITS = ("train", "select", "judge")
_TENTHS = {"judge": 2, "select": 1}  # of the documents of each domain; at least one
_LONGEST = 2048  # tokens of a plain text that are one document
_REPEATED = 6  # tokens in a row that count as the same again
_LOOP = 0.5  # share of them in a document that is a loop
_TOO_SHORT = 64  # tokens, of which nothing can be said
_EXCERPT = 192  # tokens of a document where it has to be short, a quarter of them of its prompt


@dataclass(frozen=True)
class Document:
    """One document in the model's tokens.

    Attributes:
        prompt: tokens in front that the model was given.
        key: what it is by: a hash, the same for answers to one prompt.
    """

    ids: tuple[int, ...] = field(repr=False)
    prompt: int
    domain: str
    key: str

    @property
    def answer(self) -> tuple[int, ...]:
        """What counts."""
        return self.ids[self.prompt :]

    @property
    def loops(self) -> bool:
        """Whether most of it was said before: a model that was sampled badly repeats itself to the end."""
        answer = self.answer
        if len(answer) < _TOO_SHORT:
            return False
        grams = [answer[at : at + _REPEATED] for at in range(len(answer) - _REPEATED + 1)]
        return len(set(grams)) < _LOOP * len(grams)


@dataclass(frozen=True)
class Chunked:
    """Chunks, with what stands at each of their places.

    Attributes:
        ids: int32 ``(chunks, chunk)``.
        document: int32 likewise: the number of the document, counted over all splits.
        counts: bool likewise: a token of an answer, or of a document without a prompt.
        domains: of each document.
        splits: the chunks ``[start, stop)`` of each split.
    """

    ids: np.ndarray = field(repr=False)
    document: np.ndarray = field(repr=False)
    counts: np.ndarray = field(repr=False)
    domains: tuple[str, ...]
    splits: Mapping[str, tuple[int, int]]

    @property
    def sha256(self) -> str:
        """Of everything that is said here."""
        digest = hashlib.sha256()
        for part in (self.ids.astype("<i4"), self.document.astype("<i4"), self.counts):
            digest.update(part.tobytes())
        digest.update(repr((self.ids.shape, self.domains, sorted(self.splits.items()))).encode())
        return digest.hexdigest()

    def counted(self, depth: int) -> np.ndarray:
        """Bool ``(chunks, depth, chunk - depth - 1)``: drafts of each anchor whose token counts, and is of
        the document that the anchor stands in, as are all before it."""
        import numpy as np

        count = self.ids.shape[1] - depth - 1
        found = np.zeros((len(self.ids), depth, count), bool)
        same = self.document[:, 1 : 1 + count] == self.document[:, :count]
        for ahead in range(depth):
            at = slice(ahead + 2, ahead + 2 + count)
            same = same & (self.document[:, at] == self.document[:, :count])
            found[:, ahead] = same & self.counts[:, at]
        return found

    def anchors(self, depth: int) -> np.ndarray:
        """Bool ``(chunks, chunk - depth - 1)``: anchors whose drafts 1 to ``depth`` all count."""
        import numpy as np

        return np.asarray(self.counted(depth).all(axis=1))

    def part(self, split: str) -> slice:
        """The chunks of a split; none where it is not there."""
        return slice(*self.splits.get(split, (0, 0)))


def documents_of(corpus: Corpus, view: ModelView, *, at_most: int | None = None) -> list[Document]:
    """What a corpus holds, in the model's tokens, every text once; of so many tokens, in an order by lot.

    Raises:
        InputError: the model has no usable tokenizer, or ids are beyond its vocabulary.
    """
    given = all(isinstance(record.content, Ids) for record in corpus.records)
    tokenizer = None if given else model_tokenizer(view.files, view.label)
    reader = RecordReader(tokenizer, view.files, view.label)
    vocabulary = int(view.text["vocab_size"])
    found: dict[str, Document] = {}
    tokens = 0
    for record, ids in in_order(corpus, reader, 0):
        for document in _read(record, ids, reader):
            if document.ids and not 0 <= min(document.ids) <= max(document.ids) < vocabulary:
                raise InputError(
                    f"{corpus.label} has the token id {max(document.ids)}; the vocabulary of {view.label} "
                    f"has {vocabulary}",
                    hint="Was it tokenized for another model?",
                )
            content = hashlib.sha256(repr(document.ids).encode()).hexdigest()
            if document.ids and content not in found:
                found[content] = document
                tokens += len(document.ids)
        if at_most is not None and tokens >= at_most:
            break
    return list(found.values())


def domain_of(record: Record) -> str:
    """What a record counts to: what it says itself, or the part of the package's corpus that it is of."""
    return record.domain or record.category or OWN


def _read(record: Record, given: Sequence[int], reader: RecordReader) -> Iterable[Document]:
    ids = tuple(given)
    domain = domain_of(record)
    if isinstance(record.content, Text) and not record.category:
        for at in range(0, len(ids), _LONGEST):
            yield _document(ids[at : at + _LONGEST], 0, domain)
        return
    prompt = min(record.prompt, len(ids)) if isinstance(record.content, Ids) else 0
    if isinstance(record.content, Chat):
        prompt = _prompt(record, record.content, ids, reader)
    yield _document(ids, prompt, domain)


def _prompt(record: Record, chat: Chat, ids: Sequence[int], reader: RecordReader) -> int:
    """Where the last answer begins: up to there the conversation without it reads the same."""
    if chat.messages[-1].get("role") != "assistant" or len(chat.messages) < 2:
        return 0
    asked = reader.ids(replace(record, content=replace(chat, messages=chat.messages[:-1])))
    same = (at for at, (one, other) in enumerate(zip(ids, asked, strict=False)) if one != other)
    return next(same, min(len(ids), len(asked)))


def _document(ids: tuple[int, ...], prompt: int, domain: str) -> Document:
    key = hashlib.sha256(repr((domain, ids[:prompt] if prompt else ids)).encode()).hexdigest()
    return Document(ids, prompt, domain, key)


def divided(documents: Sequence[Document], seed: int = 0) -> dict[str, list[Document]]:
    """The documents of each split, each domain divided alike. A domain of fewer than three prompts cannot be
    divided: all of it is judged by."""
    found: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for domain in sorted({document.domain for document in documents}):
        groups: dict[str, list[Document]] = {}
        for document in documents:
            if document.domain == domain:
                groups.setdefault(document.key, []).append(document)
        order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
        if len(order) < len(SPLITS):
            found["judge"] += [each for key in order for each in groups[key]]
            continue
        at = 0
        for split, tenths in _TENTHS.items():
            taken = max(1, round(len(order) * tenths / 10))
            found[split] += [each for key in order[at : at + taken] for each in groups[key]]
            at += taken
        found["train"] += [each for key in order[at:] for each in groups[key]]
    return found


def excerpts(documents: Sequence[Document], tokens: int) -> list[Document]:
    """Beginnings of documents, of so many tokens together, the domain with the fewest so far first."""
    short = []
    for each in documents:
        begin = max(0, each.prompt - _EXCERPT // 4)
        ids = each.ids[begin : begin + _EXCERPT]
        short.append(replace(each, ids=ids, prompt=each.prompt - begin))
    return list(balanced(short, tokens))


def balanced(documents: Iterable[Document], tokens: float) -> Iterator[Document]:
    """So many tokens of them, the domain that has the fewest so far first."""
    waiting: dict[str, list[Document]] = {}
    for document in documents:
        waiting.setdefault(document.domain, []).append(document)
    taken = dict.fromkeys(waiting, 0)
    while waiting and sum(taken.values()) < tokens:
        domain = min(waiting, key=lambda name: (taken[name], name))
        document = waiting[domain].pop(0)
        taken[domain] += len(document.ids)
        if not waiting[domain]:
            del waiting[domain]
        yield document


def chunked(splits: Mapping[str, Sequence[Document]], size: int) -> Chunked:
    """Chunks of ``size`` tokens; what is left over of a split is dropped, or filled up where it is all.

    Raises:
        InputError: there is nothing at all.
    """
    import numpy as np

    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    domains: list[str] = []
    places: dict[str, tuple[int, int]] = {}
    start = 0
    for split, documents in splits.items():
        total = sum(len(document.ids) for document in documents)
        ids, owner = np.zeros(total, np.int32), np.zeros(total, np.int32)
        counts = np.zeros(total, bool)
        at = 0
        for document in documents:
            stop = at + len(document.ids)
            ids[at:stop] = document.ids
            owner[at:stop] = len(domains)
            counts[at + document.prompt : stop] = True
            domains.append(document.domain)
            at = stop
        chunks = total // size
        if not chunks and total:
            chunks, short = 1, (0, size - total)
            ids, counts = np.pad(ids, short), np.pad(counts, short)
            owner = np.pad(owner, short, constant_values=-1)
        kept = chunks * size
        parts.append(tuple(each[:kept].reshape(chunks, size) for each in (ids, owner, counts)))  # type: ignore[arg-type]
        places[split] = (start, start + chunks)
        start += chunks
    if not start:
        raise InputError("the text is empty", hint="Give JSON lines, or a text file.")
    whole = [np.concatenate(each) for each in zip(*parts, strict=True)]
    return Chunked(whole[0], whole[1], whole[2], tuple(domains), places)
