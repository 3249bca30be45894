"""From a page to the three files of a report: HTML, Markdown and JSON.

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

from qexport.export.disk import make_folder
from qexport.export.files import replace_file
from qexport.receipt.safe_text import template
from qexport.report.gather import gather
from qexport.report.page import lay_out

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from qexport.receipt.types import Gate
    from qexport.report.page import Page
    from qexport.report.report import Report


REPORT_NAMES = ("report.html", "report.md", "report.json")


@dataclass(frozen=True)
class ReportPaths:
    """``report.html``, ``report.md`` and ``report.json``."""

    html: Path
    markdown: Path
    json: Path


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


def save_report(report: Report, out: Path) -> ReportPaths:
    """Write a report that is there already; earlier ones of the same names are replaced.

    Raises:
        EnvironmentProblem: the files cannot be written.
    """
    page = lay_out(report)
    paths = ReportPaths(*(out / name for name in REPORT_NAMES))
    texts = (
        (paths.html, html(page)),
        (paths.markdown, markdown(page)),
        (paths.json, json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"),
    )
    make_folder(out)
    for path, content in texts:
        replace_file(path, content.encode())
    return paths


def html(page: Page) -> str:
    """The text of report.html."""
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return template(__package__, "report.html.jinja", html=True).render(vars(page), style=Markup(style))


def markdown(page: Page) -> str:
    """The text of report.md."""
    return template(__package__, "report.md.jinja").render(vars(page))
