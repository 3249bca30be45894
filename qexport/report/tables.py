"""The tables of a report as values, so that Markdown and HTML show the same figures.

A column in which nothing stands is left out; so is a table without rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.receipt.text import bits, nats, percent, ratio, speed, times, with_error
from qexport.report.words import gate_value, gate_words
from qexport.sizes import size_text

if TYPE_CHECKING:
    from qexport.receipt.measures import Kld
    from qexport.report.pairs import Pair
    from qexport.report.report import Model, Report
    from qexport.report.row import Row


@dataclass(frozen=True)
class Column:
    """A heading; ``number`` columns align right."""

    title: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """Plain text in every cell; ``title`` is also what a screen reader calls it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @classmethod
    def of(
        cls, title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], note: str = ""
    ) -> Table:
        """Without the columns in which nothing stands."""
        shown = [at for at in range(len(columns)) if any(row[at] for row in rows)]
        kept = tuple(tuple(row[at] for at in shown) for row in rows)
        return cls(title, tuple(columns[at] for at in shown), kept, note)


def artifacts(model: Model) -> Table:
    """All of a model's artifacts, with the figures that people choose by."""
    return Table.of(
        "Artifacts",
        [column for column, _ in _ARTIFACT],
        [[value(row) for _, value in _ARTIFACT] for row in model.rows],
    )


def divergences(model: Model) -> Table:
    """The whole distribution of the KL divergence."""
    rows = [
        [row.title, *(value(row.measures.kld) for _, value in _KLD), str(row.measures.positions or "")]
        for row in model.measured
        if row.measures.kld is not None
    ]
    names = [Column(name, True) for name, _ in _KLD]
    columns = [Column("Artifact"), *names, Column("Positions", True)]
    note = (
        "Nats; ± is the standard error of the mean, from blocks of neighbouring positions. A percentile of "
        "99 % is the value that one position in a hundred exceeds; ten positions must."
    )
    return Table.of("KL divergence in full", columns, rows, note)


def speeds(model: Model) -> Table:
    """Every setting of every bench."""
    rows = [list(row) for each in model.measured for row in _speed_rows(each)]
    columns = [
        Column("Artifact"),
        Column("MTP"),
        Column("Tokens/s", True),
        Column("Slowest to fastest", True),
        Column("Against bare", True),
        Column("Drafts accepted", True),
        Column("Prompt tokens/s", True),
    ]
    return Table.of(
        "Speed", columns, rows, "Medians over repeats; n-max is how many tokens are drafted at a time."
    )


def gates(report: Report) -> Table:
    """Each gate and its outcome, those that were not kept first."""
    rows = [
        [
            "kept" if gate.passed else "NOT KEPT",
            gate.artifact,
            gate_words(gate.gate),
            gate_value(gate.gate, gate.limit),
            gate_value(gate.gate, gate.value),
        ]
        for gate in sorted(report.gates, key=lambda gate: gate.passed)
    ]
    columns = [
        Column("Outcome"),
        Column("Artifact"),
        Column("Gate"),
        Column("Limit", True),
        Column("Value", True),
    ]
    return Table.of("Gates", columns, rows)


def comparison(ours: Model, theirs: Model, pairs: Sequence[Pair]) -> Table:
    """The same type of two models, line under line."""
    rows = [
        cells for pair in pairs for cells in (_side(pair.ours, ours.title), _side(pair.theirs, theirs.title))
    ]
    columns = [
        Column("Type"),
        Column("Model"),
        Column("Size", True),
        Column("KL divergence", True),
        Column("99\u00a0%", True),
        Column("Same top-1", True),
        Column("MTP acceptance", True),
        Column("Its source's", True),
        Column("Tokens/s", True),
        Column("Best with MTP", True),
    ]
    return Table.of(f"{ours.title} and {theirs.title}", columns, rows)


def checksums(model: Model) -> Table:
    """Every file of weights and beside them."""
    rows = [[file.name, f"{file.size:,}", file.sha256] for row in model.rows for file in row.artifact.files]
    return Table.of("Files", [Column("File"), Column("Bytes", True), Column("SHA-256")], rows)


def _side(row: Row, model: str) -> list[str]:
    found = row.measures
    kld = found.kld
    best = row.bench.best if row.bench is not None else None
    bare = row.bench.bare if row.bench is not None else None
    return [
        row.title,
        model,
        size_text(row.size),
        with_error(kld.estimate if kld else None),
        nats(kld.p99 if kld else None),
        with_error(found.same_top1, share=True),
        with_error(found.acceptance, share=True),
        with_error(found.source_acceptance, share=True),
        speed(bare.tok_s.median if bare else None),
        f"{speed(best.tok_s.median)} (n-max {best.n_max})" if best and best.n_max else "",
    ]


def _speed_rows(row: Row) -> Iterator[tuple[str, ...]]:
    if row.bench is None:
        return
    bare = row.bench.bare
    for found in row.bench.speeds:
        gain = found.tok_s.median / bare.tok_s.median if bare and found.n_max else None
        yield (
            row.title,
            f"n-max {found.n_max}" if found.n_max else "off",
            speed(found.tok_s.median),
            f"{speed(found.tok_s.low)} to {speed(found.tok_s.high)}",
            times(gain),
            percent(found.acceptance),
            speed(found.prompt_tok_s.median if found.prompt_tok_s else None),
        )


_ARTIFACT: tuple[tuple[Column, Callable[[Row], str]], ...] = (
    (Column("Type"), lambda row: f"{row.title} (MTP head)" if row.drafter else row.title),
    (Column("Size", True), lambda row: size_text(row.size)),
    (Column("Verified"), lambda row: row.artifact.verdict),
    (Column("Bits/weight", True), lambda row: bits(row.artifact.bits_per_weight)),
    (
        Column("KL divergence", True),
        lambda row: with_error(row.measures.kld.estimate if row.measures.kld else None),
    ),
    (Column("99\u00a0%", True), lambda row: nats(row.measures.kld.p99 if row.measures.kld else None)),
    (Column("Same top-1", True), lambda row: with_error(row.measures.same_top1, share=True)),
    (Column("Perplexity ratio", True), lambda row: ratio(row.measures.perplexity_ratio)),
    (Column("MTP acceptance", True), lambda row: with_error(row.measures.acceptance, share=True)),
    (Column("Source's", True), lambda row: with_error(row.measures.source_acceptance, share=True)),
    (Column("By"), lambda row: row.runtime),
    (Column("File"), lambda row: row.name),
)
_KLD: tuple[tuple[str, Callable[[Kld | None], str]], ...] = (
    ("Mean", lambda kld: with_error(kld.estimate if kld else None)),
    ("Median", lambda kld: nats(kld.median if kld else None)),
    ("90 %", lambda kld: nats(kld.p90 if kld else None)),
    ("95 %", lambda kld: nats(kld.p95 if kld else None)),
    ("99 %", lambda kld: nats(kld.p99 if kld else None)),
    ("99.9\u00a0%", lambda kld: nats(kld.p99_9 if kld else None)),
    ("Largest", lambda kld: nats(kld.max if kld else None)),
)
