"""What stands in a report, in its order: the parts that Markdown and HTML both show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.report.mtp_charts import acceptance_chart, speed_chart
from qexport.report.size_chart import size_chart
from qexport.report.tables import artifacts, checksums, comparison, divergences, gates, speeds
from qexport.report.words import differences, glossary, summary

if TYPE_CHECKING:
    from qexport.receipt.tables import Table
    from qexport.report.chart import Chart
    from qexport.report.report import Model, Report


@dataclass(frozen=True)
class Part:
    """One model: its tables, and its files apart, which are many."""

    model: Model
    tables: tuple[Table, ...]
    files: Table


@dataclass(frozen=True)
class Comparison:
    """Two models side by side; ``differences`` says what was not made alike."""

    table: Table
    words: str
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """All of it."""

    report: Report
    summary: tuple[str, ...]
    gates: Table
    charts: tuple[Chart, ...]
    comparisons: tuple[Comparison, ...]
    parts: tuple[Part, ...]
    glossary: tuple[tuple[str, str], ...]


def lay_out(report: Report) -> Page:
    """The page of a report."""
    charts = (size_chart(report), acceptance_chart(report), speed_chart(report))
    return Page(
        report=report,
        summary=tuple(summary(report)),
        gates=gates(report),
        charts=tuple(chart for chart in charts if chart is not None),
        comparisons=tuple(_comparisons(report)),
        parts=tuple(_part(model) for model in report.models),
        glossary=tuple(glossary(report)),
    )


def _part(model: Model) -> Part:
    found = (artifacts(model), divergences(model), speeds(model))
    return Part(model, found, checksums(model))


def _comparisons(report: Report) -> list[Comparison]:
    found = []
    for other, pairs in report.pairs:
        differing = tuple(differences(pairs))
        words = "Each is measured against its own source."
        if not pairs:
            words = "They have no type in common."
        elif not differing:
            words = f"The same types, made with the same settings. {words}"
        found.append(Comparison(comparison(report.models[0], other, pairs), words, differing))
    return found
