"""One output object: data to stdout, words and progress to stderr, or one JSON document."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import click

from qexport.cli._board import Board
from qexport.cli._options import WORDS
from qexport.cli._table import drawn
from qexport.cli._terminal import colourless, folded, is_terminal, printable, put, redrawn, visible
from qexport.run.watcher import Phase, Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from qexport.doctor.diagnose import Diagnosis
    from qexport.progress import Progress
    from qexport.publishing.plan import PushOptions
    from qexport.publishing.push import Pushed, Rehearsal
    from qexport.report.write import ReportPaths
    from qexport.run.target import Item


def _console() -> Console:
    """Where bars and boards are drawn."""
    from rich.console import Console

    return Console(stderr=True, color_system=None if colourless() else "auto")


class Saying(IntEnum):
    """How much is said on stderr."""

    NONE = 0
    SOME = 1
    ALL = 2


def words_wanted() -> Saying:
    """What ``-v`` and ``--quiet`` say of this command; SOME outside of one."""
    context = click.get_current_context(silent=True)
    return Saying.SOME if context is None else Saying(context.find_root().meta.get(WORDS, Saying.SOME))


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
        self._words = words_wanted()
        self._board: Board | None = None
        self._names: list[str] = []
        Output.printed = False

    @property
    def verbose(self) -> bool:
        """Whether ``-v`` asks for all there is."""
        return self._words is Saying.ALL

    def say(self, words: str = "") -> None:
        """Words for the person watching: stderr, not part of the result; none with ``--quiet``."""
        if self._words > Saying.NONE:
            put(folded(words, sys.stderr), err=True)

    def detail(self, words: str) -> None:
        """Every check that was made, with ``-v``."""
        if self._words is Saying.ALL:
            put(folded(words, sys.stderr), err=True)

    def title(self, message: str) -> None:
        """A heading among the words."""
        if self._words > Saying.NONE:
            put(message, err=True, bold=True)

    def stage(self, name: str, stage: str) -> None:
        """In the table of what is being proven."""
        if self._board is not None:
            self._board.stage(name, stage)

    def proven(self, name: str, verdict: str) -> None:
        """Likewise; a line of its own where no table is drawn."""
        if self._board is not None:
            line = self._board.done(name, verdict)
            if not self._drawn:
                self.say(f"  {line}")

    def document(self, value: Any) -> None:
        """The result as JSON (only with ``--json``)."""
        if self.as_json:
            Output.printed = True
            put(visible(json.dumps(value, indent=2, ensure_ascii=False)))

    def text(self, message: str, *, as_is: bool = False) -> None:
        """The result in words (only without ``--json``): stdout; ``as_is``: whatever the terminal's width."""
        if not self.as_json:
            put(message if as_is else folded(message, sys.stdout))

    def next(self, *words: str | Path) -> None:
        """What one would run now, to be copied: stderr, and not where a program reads."""
        if not self.as_json and self._words > Saying.NONE:
            put(f"Next: {shlex.join(['qexport', *map(str, words)])}", err=True)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None
    ) -> None:
        """The result as a table (only without ``--json``): stdout."""
        if not self.as_json and rows:
            put(drawn(columns, rows, title, screen=is_terminal(sys.stdout)), nl=False, raw=True)

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

        self._names = [item.name for item in items if not item.attached]
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
        """A bar with what is done and time left on stderr, silent where stderr is no terminal; of proving a
        table of the artifacts, or there a line for each.
        """
        if phase is Phase.VERIFYING and total:
            with self._proving(), super().phase(phase, total) as unseen:
                yield unseen
            return
        if not total or phase not in _BARS:
            with super().phase(phase, total) as unseen:
                yield unseen
            return
        with self._bar(total, phase.value, steps=_BARS[phase]) as bar:
            yield bar

    @property
    def _drawn(self) -> bool:
        return redrawn(sys.stderr) and self._words is Saying.SOME

    @contextmanager
    def _proving(self) -> Iterator[None]:
        self._board = board = Board(self._names)
        try:
            if not self._drawn:
                yield
                return
            from rich.live import Live

            console = _console()
            with Live(console=console, get_renderable=board.drawn, refresh_per_second=4):
                yield
        finally:
            self._board = None

    @contextmanager
    def _bar(self, total: int, label: str, *, steps: bool) -> Iterator[Progress]:
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
        shown = is_terminal(sys.stderr) and self._words > Saying.NONE
        with Progress(*columns, console=_console(), disable=not shown) as bar:
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
