"""Reports for people: the closing table, and the lines that say what was found about one file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qexport.sizes import size_text
from qexport.verify.report import Check, Status

if TYPE_CHECKING:
    from qexport.verify.report import Report

__all__ = ["COLUMNS", "describe", "render", "rows"]

COLUMNS = ("file", "size", "bits/weight", "load", "tok/s", "MTP tok/s", "accepted", "head", "KL", "verdict")
_MARKS = {Status.PASS: "ok", Status.FAIL: "FAIL", Status.SKIPPED: "not checked"}
_ABSENT = "-"


def rows(reports: Sequence[Report]) -> list[list[str]]:
    """One row for each report, in the order of ``COLUMNS``; a dash where nothing was measured."""
    return [
        [
            report.artifact,
            size_text(report.size) if report.size else _ABSENT,
            _number(report.bits_per_weight, ".2f"),
            _number(report.load_s, ".1f", " s"),
            _number(report.tok_s, ".1f"),
            _number(report.mtp_tok_s, ".1f"),
            _share(report.acceptance),
            _share(_head(report)),
            _divergence(report),
            report.verdict,
        ]
        for report in reports
    ]


def _head(report: Report) -> float | None:
    """Acceptance of the head by its own trunk, one token ahead on held-out text: the same for every format.

    ``accepted`` is what the runtime accepted of its drafts in text of its own, which is easier to guess.
    """
    head = report.finding(Check.MTP_HEAD)
    return None if head is None else head.data.get("acceptance")


def _share(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.0%}"


def _divergence(report: Report) -> str:
    found = report.finding(Check.DIVERGENCE)
    mean = None if found is None else found.data.get("mean")
    return _ABSENT if mean is None else f"{mean:.4f}"


def render(reports: Sequence[Report], *, width: int | None = None) -> str:
    """The table as text; with rich where it is installed, else columns padded with blanks."""
    body = rows(reports)
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return _plain(body)
    table = Table(*COLUMNS)
    for at in range(1, len(COLUMNS) - 1):
        table.columns[at].justify = "right"
    for row in body:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=width, no_color=True, highlight=False, markup=False).print(table)
    return out.getvalue()


def describe(report: Report) -> list[str]:
    """One line for each finding, with the runtime's own last words under a failure."""
    lines = [f"{report.artifact}: {report.verdict}  ({report.runtime} {report.runtime_version})"]
    for finding in report.findings:
        lines.append(f"  {_MARKS[finding.status]:<11}  {finding.check.value:<14}  {finding.summary}")
        if finding.status is Status.FAIL:
            lines += [f"               | {line}" for line in finding.data.get("log", ())]
    return lines


def _plain(body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in (COLUMNS, *body)) for at in range(len(COLUMNS))]
    table = (
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in (COLUMNS, *body)
    )
    return "\n".join(table) + "\n"


def _number(value: float, form: str, unit: str = "") -> str:
    return f"{value:{form}}{unit}" if value else _ABSENT
