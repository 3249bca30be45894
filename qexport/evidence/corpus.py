"""Corpora: what a model reads while its activations are measured.

Three sources: the corpus that comes with qexport (``calib/`` in the repository, inside the package when
installed), a plain text, or a file of records (JSON lines or JSON). A corpus is known by its file's name,
never by its folder, and by a hash: of the file for plain text, of the records in their canonical form
otherwise, so that the same conversations in other columns are the same corpus.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qexport.checkpoint.paths import read_small
from qexport.errors import EnvironmentProblem, InputError
from qexport.evidence.kinds import CORPUS_HINT, read_head, refuse_binary
from qexport.evidence.records import Record, RecordError, Text, read_record

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


BUILTIN_LABEL = "qexport-calib-1"
"""Name of the built-in corpus; the number grows when its text changes."""
BUILTIN_CATEGORIES = ("code", "reasoning", "chat", "tools", "prose", "multilingual")

# A thousand times what an importance matrix is made from.
_MAX_BYTES = 1 << 28
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


Kind = Literal["built-in", "text", "jsonl"]
_PARTS = 10  # one of them is kept apart where a part is


@dataclass(frozen=True)
class Corpus:
    """Text to calibrate with.

    Attributes:
        records: what it holds; a plain text is one record.
        label: the file's name, or the built-in corpus's.
        sha256: of its content, see above.
        kind: where it came from.
    """

    records: tuple[Record, ...] = field(repr=False)
    label: str
    sha256: str
    kind: Kind


def builtin_corpus() -> Corpus:
    """The corpus that comes with qexport: categories by turns, each in the order of its file."""
    return _shipped(BUILTIN_LABEL, BUILTIN_CATEGORIES)


def heldout_corpus() -> Corpus:
    """Text of the same kinds that is never calibrated with, for measuring what a quantization lost."""
    return _shipped(f"{BUILTIN_LABEL}-heldout", ("heldout",))


def read_corpus(path: Path) -> Corpus:
    """Read a file: JSON where its name ends so (``.jsonl``, ``.ndjson``, ``.json``), plain text otherwise.

    Raises:
        InputError: it cannot be read, is empty, is no UTF-8, or a record cannot be used; the message has the
            file's name and the line.
    """
    refuse_binary(path.name, read_head(path))
    data = read_small(path, path.name, limit=_MAX_BYTES)
    text = _decode(path.name, data)
    if not text.strip():
        raise InputError(f"{path.name} is empty", hint=CORPUS_HINT)
    if path.suffix.lower() in _JSON_SUFFIXES:
        return _of_records(path.name, "jsonl", _parse(path.name, text.removeprefix("\ufeff")))
    # llama-imatrix's `-f` leaves out one line end at the end of a file, and nothing else:
    # https://github.com/ggml-org/llama.cpp/blob/master/common/arg.cpp
    record = Record(Text(text.removesuffix("\n")))
    return Corpus((record,), path.name, hashlib.sha256(data).hexdigest(), "text")


def kept_apart(corpus: Corpus, seed: int = 0) -> tuple[Corpus, Corpus] | None:
    """The corpus without a tenth of it, and that tenth: to judge by what was not calibrated on.

    Whole records, drawn by the seed; of a plain text its last lines. ``None``: there is too little to divide.
    """
    if corpus.kind == "text":
        (record,) = corpus.records
        assert isinstance(record.content, Text)
        text = record.content.text
        cut = text.find("\n", len(text) - len(text) // _PARTS)
        if not 0 < cut < len(text) - 1:
            return None
        groups = [[Record(Text(text[:cut]))], [Record(Text(text[cut + 1 :]))]]
    else:
        aside = len(corpus.records) // _PARTS
        if not aside:
            return None
        numbers = sorted(range(len(corpus.records)), key=lambda number: lot(seed + 1, number))
        drawn = set(numbers[:aside])
        groups = [
            [each for number, each in enumerate(corpus.records) if (number in drawn) is part]
            for part in (False, True)
        ]
    rest, kept = (_of_records(corpus.label, corpus.kind, group) for group in groups)
    return rest, kept


def lot(seed: int, number: int) -> bytes:
    """What orders records at random. Not ``random.shuffle``: its sequence belongs to the Python version."""
    return hashlib.sha256(f"{seed} {number}".encode()).digest()


def _shipped(label: str, categories: Iterable[str]) -> Corpus:
    folder: Traversable = resources.files("qexport.evidence") / "data"
    if not folder.is_dir():  # a checkout, or an editable install of one
        folder = Path(__file__).parents[2] / "calib"
    records: list[Record] = []
    for category in categories:
        file = folder / f"{category}.jsonl"
        if not file.is_file():
            raise EnvironmentProblem(
                f"{file.name} of the built-in corpus is missing from this installation",
                hint="Install qexport again, or name a corpus of your own.",
            )
        records += _parse(file.name, _decode(file.name, file.read_bytes()), category)
    return _of_records(label, "built-in", records)


def _of_records(label: str, kind: Kind, records: Iterable[Record]) -> Corpus:
    kept = tuple(records)
    if not kept:
        raise InputError(f"{label} has no records", hint=CORPUS_HINT)
    digest = hashlib.sha256()
    for record in kept:
        digest.update(record.canonical() + b"\n")
    return Corpus(kept, label, digest.hexdigest(), kind)


def _decode(label: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{label}, line {line}: not UTF-8 (byte {error.start} of the file is 0x{data[error.start]:02x})",
            hint=f"Convert it: iconv -f LATIN1 -t UTF-8 {label}",
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{label}, line {line}: a zero byte, so this is no text file", hint=CORPUS_HINT)
    return text


def _parse(label: str, text: str, category: str = "") -> Iterator[Record]:
    """Records of JSON lines, or of one JSON document that fills the file."""
    rows, unit = list(_lines(label, text)), "line"
    if len(rows) == 1 and isinstance(rows[0][1], list):
        rows, unit = list(enumerate(rows[0][1], 1)), "record"
    for number, row in rows:
        try:
            yield read_record(row, category)
        except RecordError as error:
            raise InputError(f"{label}: {unit} {number} {error}", hint=error.hint) from None


def _lines(label: str, text: str) -> Iterator[tuple[int, Any]]:
    whole = _whole_document(text)
    if whole is not None:
        yield 1, whole
        return
    # Not splitlines(): JSON strings may hold U+2028 and the like.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{label}: line {number} is not JSON ({error.msg}, column {error.colno})",
                hint="JSON lines have one whole object in each line.",
            ) from None
        except (ValueError, RecursionError):  # thousands of digits, thousands of brackets
            raise InputError(f"{label}: line {number} has JSON beyond all bounds") from None


def _whole_document(text: str) -> Any:
    """The one JSON value that the file is; ``None`` where it is made of lines, or of nothing valid."""
    first = text.lstrip().split("\n", 1)[0]
    try:
        json.loads(first)
        if "\n" in text.strip():
            return None  # the first line stands alone, so the others should
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
