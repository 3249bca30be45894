"""A table for people: lines where they fit, else a paragraph for each row."""

from __future__ import annotations

import io
import sys
import textwrap
from typing import TYPE_CHECKING

from qexport.cli._board import style_of
from qexport.cli._terminal import colourless, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_EMPTY = ("", "-", "–")
_HELD = "\0"  # a blank where no line may end


def drawn(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None, *, screen: bool) -> str:
    """The table, for a terminal of its width or for a file; numbers align right by their look.

    Args:
        screen: stdout is a terminal. NO_COLOR and FORCE_COLOR hold there and elsewhere.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [[printable(cell) for cell in row] for row in rows]
    widest = sum(max(cell_len(row[at]) for row in (columns, *rows)) + 3 for at in range(len(columns)))
    into = io.StringIO()
    width = None if screen else max(widest, 80)
    console = Console(
        file=into,
        width=width,
        force_terminal=screen or None,
        color_system=None if colourless() else "auto",
        markup=False,
        emoji=False,
    )
    heading = None if title is None else printable(title)
    if widest > console.width:
        return "".join(f"{line}\n" for line in _paragraphs(columns, rows, heading, console.width))
    lines = box.SIMPLE_HEAD if "utf" in (getattr(sys.stdout, "encoding", "") or "utf") else box.ASCII
    table = Table(title=heading, title_justify="left", box=lines, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(row[index] in _EMPTY or row[index][0].isdigit() for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        styled = zip(columns, row, strict=True)
        table.add_row(*(Text(cell, style_of(cell) if name == "verdict" else "") for name, cell in styled))
    console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in into.getvalue().splitlines())


def _paragraphs(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None, width: int
) -> Iterator[str]:
    """Each row's first cell, and below it what is known of it."""
    if title is not None:
        yield from textwrap.wrap(title, width)
    for first, *others in rows:
        yield from textwrap.wrap(first, width, break_on_hyphens=False)
        named = zip(columns[1:], others, strict=True)
        known = "  ".join(f"{name} {cell}".replace(" ", _HELD) for name, cell in named if cell not in _EMPTY)
        for line in textwrap.wrap(known, width, initial_indent="  ", subsequent_indent="  "):
            yield line.replace(_HELD, " ")
