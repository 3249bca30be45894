"""What stands on the page of a report, and the three files that show it: HTML, Markdown and JSON.

The HTML loads nothing from anywhere, and runs no script: a content security policy forbids it all but its own
style. What comes from a receipt passes through Jinja's escaping; pictures are built from escaped parts. The
Markdown is for GitHub, the Hub and job summaries: the same without pictures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from markupsafe import Markup

from qexport.formats.registry import FORMATS
from qexport.onepass.disk import make_folder
from qexport.onepass.files import replace_file
from qexport.receipt.safe_text import template
from qexport.report.answers import Question, asked
from qexport.report.beside import Beside, beside, short_names
from qexport.report.gather import gather
from qexport.report.ladder_chart import ladder_chart, retuned_chart
from qexport.report.mtp_charts import acceptance_chart, speed_chart
from qexport.report.overview import Overview, Taken, overviews, taken, verdict_of
from qexport.report.preview import PREVIEW_NAME, preview
from qexport.report.size_chart import size_chart
from qexport.report.svg import key
from qexport.report.tables import (
    artifact_table,
    checksum_table,
    comparison_table,
    divergence_table,
    flips_table,
    gate_table,
    ladder_table,
    speed_table,
)
from qexport.report.words import glossary, summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from qexport.receipt.tables import TextTable
    from qexport.receipt.types import Gate
    from qexport.report.report import Model, Pair, Report
    from qexport.report.svg import Chart


REPORT_NAMES = ("report.html", "report.md", "report.json")


@dataclass(frozen=True)
class ReportPaths:
    """``report.html``, ``report.md`` and ``report.json``; ``report.png``, where it was asked for."""

    html: Path
    markdown: Path
    json: Path
    png: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        """Those that there are."""
        return (self.html, self.markdown, self.json, *(() if self.png is None else (self.png,)))


def write_report(
    folders: Sequence[Path], out: Path, gates: Iterable[Gate] = (), compare: Sequence[Path] = ()
) -> ReportPaths:
    """Write the report of what the folders' receipts know into ``out``, which is made if need be.

    Args:
        folders: of the model that the report is about, as :func:`~qexport.report.gather.gather` takes them.
        gates: limits and their outcome.
        compare: folders of a model to set beside it.

    Raises:
        InputError: a receipt is missing or cannot be used.
        EnvironmentProblem: the files cannot be written.
    """
    return save_report(gather(folders, gates=gates, compare=compare), out)


def save_report(report: Report, out: Path, *, png: bool = False) -> ReportPaths:
    """Write a report that is there already; earlier ones of the same names are replaced.

    Args:
        png: the picture, too.

    Raises:
        EnvironmentProblem: the files cannot be written, or a picture is asked for and Pillow is not there.
        InputError: there is nothing to draw a picture of.
    """
    page = lay_out(report)
    picture = preview(report) if png else None
    page_file, words, data = (out / name for name in REPORT_NAMES)
    paths = ReportPaths(page_file, words, data, out / PREVIEW_NAME if png else None)
    texts = (
        (paths.html, html(page)),
        (paths.markdown, markdown(page)),
        (paths.json, json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"),
    )
    make_folder(out)
    for path, content in texts:
        replace_file(path, content.encode())
    if paths.png is not None and picture is not None:
        replace_file(paths.png, picture)
    return paths


@dataclass(frozen=True)
class Section:
    """One model: its tables, and its files apart, which are many."""

    model: Model
    tables: tuple[TextTable, ...]
    files: TextTable


@dataclass(frozen=True)
class SideBySide:
    """Two models side by side; ``differences`` says what was not made alike.

    Attributes:
        names: of both, as short as they can be told apart.
        cards: one for each type that both have.
        table: the same in one.
    """

    names: tuple[str, str]
    words: str
    cards: tuple[Beside, ...]
    table: TextTable
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """All of it."""

    report: Report
    verdict: tuple[str, str]
    summary: tuple[str, ...]
    taken: tuple[Taken, ...]
    cards: tuple[Overview, ...]
    asked: tuple[Question, ...]
    gates: TextTable
    charts: tuple[Chart, ...]
    comparisons: tuple[SideBySide, ...]
    parts: tuple[Section, ...]
    glossary: tuple[tuple[str, str], ...]


def lay_out(report: Report) -> Page:
    """The page of a report."""
    ladder = ladder_chart(report)
    drafts = (ladder or acceptance_chart(report), retuned_chart(report))
    charts = (size_chart(report), *drafts, speed_chart(report))
    ours = report.models[0]
    return Page(
        report=report,
        verdict=verdict_of(ours),
        summary=tuple(summary(report)),
        taken=taken(ours),
        cards=overviews(ours),
        asked=asked(ours.measured),
        gates=gate_table(report),
        charts=tuple(chart for chart in charts if chart is not None),
        comparisons=tuple(_comparison(report.models[0], other, pairs) for other, pairs in report.pairs),
        parts=tuple(
            Section(
                model,
                (
                    artifact_table(model),
                    divergence_table(model),
                    flips_table(model),
                    ladder_table(model),
                    speed_table(model),
                ),
                checksum_table(model),
            )
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
    names = short_names(ours.title, theirs.title)
    return SideBySide(names, words, beside(pairs), comparison_table(ours, theirs, pairs), differing)


def html(page: Page) -> str:
    """The text of report.html."""
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    style += _colours()
    return template(__package__, "report.html.jinja", html=True).render(
        vars(page), style=Markup(style), mark=key
    )


def _colours() -> str:
    """A style for each format's mark, on either ground; paper is light."""
    light, dark = (
        " ".join(f".{word} {{ --colour: {each.words.colours[ground]}; }}" for word, each in FORMATS.items())
        for ground in (0, 1)
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n@media print {{ {light} }}\n"


def markdown(page: Page) -> str:
    """The text of report.md."""
    return template(__package__, "report.md.jinja").render(vars(page))
