"""The report as Markdown: tables for GitHub, the Hub and job summaries; no pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qexport.receipt.safe_text import cell

if TYPE_CHECKING:
    from qexport.report.page import Page, Part
    from qexport.report.tables import Table


def markdown(page: Page) -> str:
    """The text of report.md."""
    return "\n".join(_lines(page)) + "\n"


def _lines(page: Page) -> Iterator[str]:
    yield f"# {cell(page.report.title)}"
    for line in page.summary:
        yield from ("", cell(line))
    if page.gates.rows:
        yield from ("", "## Gates", *_table(page.gates))
    for side in page.comparisons:
        yield from ("", f"## {cell(side.table.title)}", "", cell(side.words), *_table(side.table))
        if side.differences:
            yield from ("", "**Not made alike:**", "", *(f"- {cell(line)}" for line in side.differences))
    for part in page.parts:
        title = part.model.title if len(page.parts) > 1 else "Every figure"
        yield from ("", f"## {cell(title)}", *_part(part))
    yield from ("", "## What the figures mean", "")
    yield from (f"- **{cell(term)}**: {cell(words)}" for term, words in page.glossary)
    yield ""
    day = f"; the newest artifact is of {page.report.written}" if page.report.written else ""
    yield f"Made from receipts (qexport.json) alone{day}."


def _part(part: Part) -> Iterator[str]:
    for table in part.tables:
        if table.rows:
            yield from ("", f"### {cell(table.title)}", *_table(table))
    yield from ("", "### Where it came from", "")
    yield from (f"- **{cell(fact.what)}**: {cell(fact.text)}" for fact in part.model.facts)
    if part.model.repairs:
        yield from ("", "Repaired in what was exported; the source itself was left as it is:", "")
        yield from (f"- {cell(repair)}" for repair in part.model.repairs)
    yield from ("", f"### {cell(part.files.title)}", *_table(part.files))


def _table(table: Table) -> Iterator[str]:
    """With empty lines around it; nothing for a table without rows."""
    if not table.rows:
        return
    yield ""
    yield f"| {' | '.join(cell(column.title) for column in table.columns)} |"
    yield f"|{'|'.join('---:' if column.number else '---' for column in table.columns)}|"
    for row in table.rows:
        yield f"| {' | '.join(cell(value) for value in row)} |"
    if table.note:
        yield from ("", cell(table.note))
