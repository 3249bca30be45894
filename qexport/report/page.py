"""What stands in a report, in its order: the parts that Markdown and HTML both show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.report.mtp_charts import acceptance_chart, speed_chart
from qexport.report.size_chart import size_chart
from qexport.report.tables import artifacts, checksums, comparison, divergences, gates, speeds
from qexport.report.words import glossary, summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.receipt.tables import TextTable
    from qexport.report.report import Model, Pair, Report
    from qexport.report.svg import Chart


@dataclass(frozen=True)
class Section:
    """One model: its tables, and its files apart, which are many."""

    model: Model
    tables: tuple[TextTable, ...]
    files: TextTable


@dataclass(frozen=True)
class SideBySide:
    """Two models side by side; ``differences`` says what was not made alike."""

    table: TextTable
    words: str
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """All of it."""

    report: Report
    summary: tuple[str, ...]
    gates: TextTable
    charts: tuple[Chart, ...]
    comparisons: tuple[SideBySide, ...]
    parts: tuple[Section, ...]
    glossary: tuple[tuple[str, str], ...]


def lay_out(report: Report) -> Page:
    """The page of a report."""
    charts = (size_chart(report), acceptance_chart(report), speed_chart(report))
    return Page(
        report=report,
        summary=tuple(summary(report)),
        gates=gates(report),
        charts=tuple(chart for chart in charts if chart is not None),
        comparisons=tuple(_comparison(report.models[0], other, pairs) for other, pairs in report.pairs),
        parts=tuple(
            Section(model, (artifacts(model), divergences(model), speeds(model)), checksums(model))
            for model in report.models
        ),
        glossary=tuple(glossary(report)),
    )


def _comparison(ours: Model, theirs: Model, pairs: Sequence[Pair]) -> SideBySide:
    differing = tuple(f"{pair.ours.title}: {each}" for pair in pairs for each in pair.differing)
    words = "Each is measured against its own source."
    if not pairs:
        words = "They have no type in common."
    elif not differing:
        words = f"The same types, made with the same settings. {words}"
    return SideBySide(comparison(ours, theirs, pairs), words, differing)
