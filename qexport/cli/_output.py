"""One output object: data to stdout, words and progress to stderr, or one JSON document."""

from __future__ import annotations

import io
import json
import shlex
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qexport.cli._terminal import is_terminal, printable, put, visible
from qexport.run.watcher import Phase, Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.progress import Progress
    from qexport.publishing.plan import PushOptions
    from qexport.publishing.push import Pushed, Rehearsal
    from qexport.report.write import ReportPaths
    from qexport.run.target import Item


_BARS = {
    Phase.COLLECTING: True,
    Phase.ASSAYING: False,
    Phase.WRITING: False,
    Phase.DRAFTING: True,
    Phase.ANSWERING: True,
    Phase.TUNING: True,
    Phase.HASHING: False,
}
"""Phases with a bar, and whether it counts steps or bytes; of verifying there are words."""


class Output(Watcher):
    """Where a command's results go, and who watches its runs.

    Args:
        as_json: print exactly one JSON document on stdout, and nothing else there.

    ``printed`` says whether this process has printed its document: an error that comes after it (a failed
    verification, say) must not print another.
    """

    printed = False

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        Output.printed = False

    def say(self, words: str = "") -> None:
        """Words for the person watching: stderr, not part of the result."""
        put(words, err=True)

    def title(self, message: str) -> None:
        """A heading among the words."""
        put(message, err=True, bold=True)

    def document(self, value: Any) -> None:
        """The result as JSON (only with ``--json``)."""
        if self.as_json:
            Output.printed = True
            put(visible(json.dumps(value, indent=2, ensure_ascii=False)))

    def text(self, message: str) -> None:
        """The result in words (only without ``--json``): stdout."""
        if not self.as_json:
            put(message)

    def next(self, *words: str | Path) -> None:
        """What one would run now, to be copied: stderr, and not where a program reads."""
        if not self.as_json:
            put(f"Next: {shlex.join(['qexport', *map(str, words)])}", err=True)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None
    ) -> None:
        """The result as a table (only without ``--json``): stdout. Numbers align right by their look."""
        if self.as_json or not rows:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table

        lines = box.SIMPLE_HEAD if "utf" in (getattr(sys.stdout, "encoding", "") or "utf") else box.ASCII
        table = Table(
            title=None if title is None else printable(title), title_justify="left", box=lines, pad_edge=False
        )
        for index, column in enumerate(columns):
            numeric = all(_numeric(row[index]) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(printable, row))
        screen, drawn = is_terminal(sys.stdout), io.StringIO()
        width = None if screen else 140
        Console(file=drawn, width=width, force_terminal=screen, markup=False, emoji=False).print(table)
        put(drawn.getvalue(), nl=False, raw=True)

    @property
    def upload_bars(self) -> bool:  # type: ignore[override]
        """Where somebody looks, and not at a document."""
        return is_terminal(sys.stderr) and not self.as_json

    def diagnosed(self, diagnosis: Diagnosis) -> None:
        """Its findings, in words."""
        from qexport.cli._report import say_findings

        say_findings(self, diagnosis)

    def planned(self, items: Sequence[Item]) -> None:
        """What is about to be written, in words."""
        from qexport.cli._report import say_plans

        say_plans(self, items)

    def made(self, items: Sequence[Item], receipts: Sequence[Path]) -> None:
        """The table of results, or a document."""
        from qexport.cli._report import show_results

        show_results(self, items, receipts)

    def reported(self, paths: ReportPaths) -> None:
        """Where the report is."""
        self.text(f"Report: {paths.html}")

    def pushed(self, options: PushOptions, done: Pushed | Rehearsal) -> None:
        """The commit, or all that would go into it."""
        from qexport.cli._push import show_push

        show_push(self, options, done)

    @contextmanager
    def phase(self, phase: Phase, total: int) -> Iterator[Progress]:
        """A bar with what is done and time left on stderr; silent where stderr is no terminal."""
        if not total or phase not in _BARS:
            with super().phase(phase, total) as unseen:
                yield unseen
            return
        with self._bar(total, phase.value, steps=_BARS[phase]) as bar:
            yield bar

    @contextmanager
    def _bar(self, total: int, label: str, *, steps: bool) -> Iterator[Progress]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        amounts: tuple[ProgressColumn, ...] = (DownloadColumn(binary_units=True), TransferSpeedColumn())
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *((MofNCompleteColumn(),) if steps else amounts),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        shown = is_terminal(sys.stderr)
        with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
            task = bar.add_task(printable(label), total=total)

            class Bar:
                def advance(self, amount: int) -> None:
                    bar.advance(task, amount)

            yield Bar()


class Gathered(Output):
    """Keeps the document of each part: a command prints one."""

    def __init__(self, output: Output) -> None:
        super().__init__(as_json=output.as_json)
        self.documents: list[Any] = []

    def document(self, value: Any) -> None:
        """Keep it."""
        self.documents.append(value)


def _numeric(cell: str) -> bool:
    return not cell or cell in ("-", "–") or cell[0].isdigit()
