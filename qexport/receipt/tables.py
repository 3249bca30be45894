"""Tables as values, and the columns that cards and reports share: the same figure has the same words in both.

A column in which nothing stands is left out; so is a table without rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.receipt.measures import Estimate
from qexport.receipt.plainly import outcome
from qexport.receipt.safe_text import cell
from qexport.receipt.text import bits, nats, percent, speed, times, with_error
from qexport.sizes import size_text

if TYPE_CHECKING:
    from qexport.receipt.speeds import Bench, Range, Speed
    from qexport.receipt.types import Artifact


@dataclass(frozen=True)
class Column:
    """A heading, and what stands under it for a value.

    Attributes:
        number: aligned right.
        markup: its cells are Markdown as they are; those of others are text.
    """

    title: str
    value: Callable[[Any], str]
    number: bool = False
    markup: bool = False


@dataclass(frozen=True)
class TextTable:
    """Text in every cell; ``title`` is also what a screen reader calls it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @classmethod
    def of(cls, title: str, columns: Sequence[Column], values: Sequence[Any], note: str = "") -> TextTable:
        """A row for each value, without the columns in which nothing stands."""
        made = [[column.value(value) for column in columns] for value in values]
        shown = [at for at in range(len(columns)) if any(row[at] for row in made)]
        rows = tuple(tuple(row[at] for at in shown) for row in made)
        return cls(title, tuple(columns[at] for at in shown), rows, note)

    @property
    def markdown(self) -> str:
        """The table alone, without its title and note."""
        lines = [[cell(column.title) for column in self.columns]]
        lines += ([*map(_shown, row, self.columns)] for row in self.rows)
        rule = "|".join("---:" if column.number else "---" for column in self.columns)
        head, *body = (f"| {' | '.join(line)} |" for line in lines)
        return "\n".join([head, f"|{rule}|", *body])


def _shown(text: str, column: Column) -> str:
    """Markdown; a figure, its error and its unit stay on one line."""
    safe = text if column.markup else cell(text)
    return safe.replace(" ", "\u00a0") if column.number else safe


def share(title: str, name: str) -> Column:
    """Of a measured share, by its name in :class:`~qexport.receipt.measures.Measures`."""
    return Column(title, lambda a: with_error(getattr(a.measures, name), share=True), number=True)


def _kld(artifact: Artifact) -> str:
    found = artifact.measures.kld
    return with_error(found.estimate if found else None)


def _predicted(artifact: Artifact) -> str:
    return "" if artifact.predicted is None or artifact.is_drafter else nats(artifact.predicted.kld)


def _flips(artifact: Artifact) -> str:
    found = artifact.measures.routing_flips
    return with_error(found.estimate if found else None, share=True)


def _beside_plain(artifact: Artifact) -> str:
    found = artifact.against_plain
    if found is None or not found.kept:
        return "" if found is None else "plain was as good"
    less = 1 - found.best.value / found.plain.value
    error = None if found.gain.error is None else found.gain.error / found.plain.value
    return f"{with_error(Estimate(less, error), share=True)} less"


SIZE = Column("Size", lambda a: size_text(a.size), number=True)
BITS = Column("Bits/weight", lambda a: bits(a.bits_per_weight), number=True)
KLD = Column("KL divergence", _kld, number=True)
PREDICTED = Column("Predicted", _predicted, number=True)
BESIDE_PLAIN = Column("Beside plain", _beside_plain, number=True)
FLIPS = Column("Routing flips", _flips, number=True)
SAME_TOP1 = share("Same top-1", "same_top1")
ACCEPTANCE = share("MTP acceptance", "acceptance")


def _images(artifact: Artifact) -> str:
    return artifact.verification.images.partition(":")[0] if artifact.verification else ""


IMAGES = Column("Images", _images)
VERIFIED = Column("Verified", lambda a: outcome(a) if a.is_model else "")


def _span(found: Range) -> str:
    return f"{speed(found.low)} to {speed(found.high)}"


def _gain(bench: Bench, each: Speed) -> str:
    return times(each.tok_s.median / bench.bare.tok_s.median if bench.bare and each.n_max else None)


SPEED = (
    Column("Artifact", lambda t: t[0].title),
    Column("MTP", lambda t: f"n-max {t[2].n_max}" if t[2].n_max else "off"),
    Column("Tokens/s", lambda t: speed(t[2].tok_s.median), number=True),
    Column("Slowest to fastest", lambda t: _span(t[2].tok_s), number=True),
    Column("Against bare", lambda t: _gain(t[1], t[2]), number=True),
    Column("Drafts accepted", lambda t: percent(t[2].acceptance), number=True),
    Column(
        "Prompt tokens/s",
        lambda t: speed(t[2].prompt_tok_s.median if t[2].prompt_tok_s else None),
        number=True,
    ),
)
"""Of an artifact, its bench, and one setting of that."""
