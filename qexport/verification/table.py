"""Reports for people: the closing table, and the lines that say what was found about one file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qexport.receipt.plainly import ended
from qexport.receipt.text import bits, with_error
from qexport.receipt.verification import Status
from qexport.sizes import size_text

if TYPE_CHECKING:
    from qexport.receipt.verification import Verification


COLUMNS = ("file", "size", "bits/weight", "KL", "same top-1", "head", "drafts", "verdict")
_MARKS = {Status.PASS: "ok", Status.FAIL: "FAIL", Status.SKIPPED: "not checked"}
_ABSENT = "-"


def rows(reports: Sequence[Verification]) -> list[list[str]]:
    """One row for each report, in the order of ``COLUMNS``; a dash where nothing was measured.

    ``head`` is its acceptance by its own trunk, one token ahead on held-out text, the same for every format;
    ``drafts`` what the runtime accepted over the few prompts that it answered.
    """
    return [
        [
            report.artifact,
            size_text(report.size) if report.size else _ABSENT,
            bits(report.bits_per_weight) or _ABSENT,
            with_error(report.measures.kld.estimate if report.measures.kld else None) or _ABSENT,
            with_error(report.measures.same_top1, share=True) or _ABSENT,
            with_error(report.measures.acceptance, share=True) or _ABSENT,
            str(report.drafts or _ABSENT),
            ended(report),
        ]
        for report in reports
    ]


def render(reports: Sequence[Verification], *, width: int | None = None) -> str:
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


def describe(report: Verification) -> list[str]:
    """One line for each finding, with the runtime's own last words under a failure."""
    lines = [f"{report.artifact}: {report.verdict}  ({report.engine or 'no runtime'})"]
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
