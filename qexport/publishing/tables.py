"""The tables of a card: what to take for a memory, the files, speeds with the head, what is stored how."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from qexport.families.parts import PARTS
from qexport.receipt.choosing import closeness, contexts, picks, tokens_text
from qexport.receipt.memory import MEMORIES
from qexport.receipt.safe_text import cell
from qexport.receipt.tables import (
    ACCEPTANCE,
    BESIDE_PLAIN,
    BITS,
    FLIPS,
    IMAGES,
    KLD,
    PREDICTED,
    SAME_TOP1,
    SIZE,
    SPEED,
    VERIFIED,
    Column,
    TextTable,
)
from qexport.receipt.text import with_error
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.receipt.choosing import Option, Pick
    from qexport.receipt.measures import Drafting
    from qexport.receipt.types import Artifact


_PROGRAMS = {
    "llama_cpp": "GGUF: llama.cpp, Ollama, LM Studio",
    "mlx_lm": "MLX: Apple silicon",
    "served": "vLLM, SGLang",
}


def file_table(artifacts: Sequence[Artifact], options: Sequence[Option] = ()) -> str:
    """A Markdown table, a row for each artifact, a column wherever one of them has a value.

    Args:
        options: what is known of their memory.
    """
    lengths = contexts(options)
    needs = (Column(tokens_text(length), partial(_need, options, length), number=True) for length in lengths)
    return TextTable.of("Files", (*_CHOICE, *needs, _CLOSE, VERIFIED), artifacts).markdown


def figure_table(artifacts: Sequence[Artifact]) -> TextTable:
    """What was measured of each."""
    known = [artifact for artifact in artifacts if any(each.value(artifact) for each in _FIGURES[1:])]
    return TextTable.of("Figures", _FIGURES, known)


def _need(options: Sequence[Option], length: int, artifact: Artifact) -> str:
    found = next((each.load for each in options if each.artifact is artifact), None)
    return size_text(found.size(length)) if found and length <= (found.cache.most or length) else ""


def _file(artifact: Artifact) -> str:
    if artifact.is_file:
        more = f" and {len(artifact.files) - 1} more" if len(artifact.files) > 1 else ""
        return f"[{cell(artifact.name)}](./{quote(artifact.name)}){more}"
    return f"[{cell(artifact.top)}/](./{quote(artifact.top)})" if artifact.top else "this repository"


_TYPE = Column("Type", lambda a: a.label)
_CHOICE = (Column("File", _file, markup=True), _TYPE, SIZE)
_CLOSE = Column("Closeness", lambda a: closeness(a.measures.kld.mean) if a.measures.kld else "")
_FIGURES = (_TYPE, BITS, KLD, PREDICTED, BESIDE_PLAIN, FLIPS, SAME_TOP1, ACCEPTANCE, IMAGES)


def choice_table(options: Sequence[Option]) -> TextTable:
    """A row for each memory into which anything fits, a column for each kind of program."""
    found = picks(options)
    rows = [at for at in range(len(MEMORIES)) if any(column[at] for column in found.values())]
    columns = [
        Column(_PROGRAMS.get(program, program), partial(_picked, each), markup=True)
        for program, each in found.items()
    ]
    return TextTable.of("Which one?", (Column("Memory", lambda at: f"{MEMORIES[at]} GB"), *columns), rows)


def _picked(column: Sequence[Pick | None], at: int) -> str:
    if (pick := column[at]) is None:
        return "–"
    return f"**{cell(pick.option.artifact.label)}**, up to {tokens_text(pick.context)}"


def speed_table(models: Sequence[Artifact]) -> TextTable:
    """Of artifacts that were benched with their head."""
    timed = [(each, each.bench) for each in models if each.bench and each.drafts]
    return TextTable.of("Speed", SPEED, [(a, bench, each) for a, bench in timed for each in bench.speeds])


def draft_table(models: Sequence[Artifact]) -> TextTable:
    """What each head's drafts come to, by how many at a time."""
    heads = [(each, each.measures.head) for each in models if each.measures.head and not each.is_drafter]
    depth = max((len(head.argmax) for _, head in heads), default=0)
    columns = (Column(f"n-max {at + 1}", partial(_drafted, at), number=True) for at in range(depth))
    return TextTable.of("Drafts", (Column("Type", lambda row: row[0].label), *columns), heads)


def _drafted(at: int, row: tuple[Artifact, Drafting]) -> str:
    found = row[1].argmax
    return with_error(found[at]) if at < len(found) else ""


def part_table(models: Sequence[Artifact]) -> TextTable:
    """As what each part of the model is stored; the type with the most bytes first."""
    known = [artifact for artifact in models if artifact.parts]
    columns = (Column(_heading(part), partial(_stored, part)) for part in PARTS)
    return TextTable.of("Parts", (_TYPE, *columns), known)


def _heading(part: str) -> str:
    """A name of the program's keeps its small letter."""
    return part if "_" in part else part[0].upper() + part[1:]


def _stored(part: str, artifact: Artifact) -> str:
    kinds = artifact.parts.get(part, {})
    return ", ".join(sorted(kinds, key=lambda kind: -kinds[kind]))
