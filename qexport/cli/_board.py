"""Artifacts and what becomes of each while they are proven: one table that is drawn again, or lines."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from qexport.cli._terminal import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType


@dataclass
class _Row:
    stage: str = ""
    begun: float = 0.0
    seconds: float | None = None


class Board:
    """What has come of each artifact, and how long the others may take.

    Args:
        names: all of them, as far as they are known; others come when something happens to them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._rows = {name: _Row() for name in names}
        self._begun = monotonic()

    def stage(self, name: str, stage: str) -> None:
        """Something begins with it."""
        row = self._rows.setdefault(name, _Row())
        if not row.stage:
            row.begun = monotonic()
        row.stage = stage

    def done(self, name: str, verdict: str) -> str:
        """It is through; in words, with how long it took."""
        self.stage(name, verdict)
        row = self._rows[name]
        row.seconds = monotonic() - row.begun
        return f"{verdict:<11} {name}  {clock(row.seconds)}"

    def drawn(self) -> RenderableType:
        """The table as it is now."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table, now = Table.grid(padding=(0, 2), expand=True), monotonic()
        table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
        table.add_column(no_wrap=True, min_width=11)
        table.add_column(no_wrap=True, justify="right", min_width=7)
        for name, row in self._rows.items():
            seconds = now - row.begun if row.seconds is None else row.seconds
            style = style_of(row.stage) if row.seconds is not None else "bold" if row.stage else "dim"
            taken = clock(seconds) if row.stage else ""
            table.add_row(printable(name), Text(printable(row.stage) or "waiting", style), taken)
        return Group(table, Text(self._told(now), "dim"))

    def _told(self, now: float) -> str:
        through = [row.seconds for row in self._rows.values() if row.seconds is not None]
        words = f"{len(through)} of {len(self._rows)}, {clock(now - self._begun)}"
        left = len(self._rows) - len(through)
        if not through or not left:
            return words
        running = sum(now - row.begun for row in self._rows.values() if row.stage and row.seconds is None)
        expected = max(left * sum(through) / len(through) - running, 0.0)
        return f"{words}, about {clock(expected)} left"


def style_of(verdict: str) -> str:
    """The colour of a verdict's first word."""
    words = verdict.split(",")[0].lower()
    if words.startswith("fail"):
        return "red"
    return "green" if words == "passed" else "yellow"


def clock(seconds: float) -> str:
    """``1:02:03``, ``2:03``.

    >>> clock(3723.4), clock(123)
    ('1:02:03', '2:03')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
