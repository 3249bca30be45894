"""Who watches a run: told of everything, in the order in which it happens, and free to do nothing about it.

The command line's output is one watcher; a program's, where it names none, is this base class.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.progress import Progress
    from qexport.publishing.plan import PushOptions
    from qexport.publishing.push import Pushed, Rehearsal
    from qexport.report.write import ReportPaths
    from qexport.run.target import Item


class Phase(StrEnum):
    """What takes its time, and what its progress counts."""

    COLLECTING = "collecting"
    """Batches of text through layers."""
    ASSAYING = "assaying"
    """Bytes of weights, in which what types cost is looked for."""
    WRITING = "writing"
    """Bytes of all files."""
    DRAFTING = "drafting"
    """Batches of text through the trunk's layers, then chunks through the MTP head."""
    ANSWERING = "answering"
    """Tokens that a model writes."""
    TUNING = "tuning"
    """Steps of the MTP head's training."""
    VERIFYING = "verifying"
    """Artifacts, with what is measured of each."""
    HASHING = "hashing"
    """Bytes of files that are to be published."""


class _Unseen:
    def advance(self, amount: int) -> None:
        """Nobody looks."""


class Watcher:
    """Does nothing; a watcher overrides what it wants to know."""

    upload_bars = False
    """Whether the Hub's client may draw its own bars."""

    def say(self, words: str) -> None:
        """A note, in words."""

    def detail(self, words: str) -> None:
        """One step of a check, for who follows each."""

    def stage(self, name: str, stage: str) -> None:
        """Something begins with an artifact that is being proven: it runs, it is measured."""

    def proven(self, name: str, verdict: str) -> None:
        """An artifact is through, with a verdict."""

    def diagnosed(self, diagnosis: Diagnosis) -> None:
        """A model was looked at: what was found in it, and what is repaired."""

    def planned(self, items: Sequence[Item]) -> None:
        """These artifacts are about to be written."""

    def phase(self, phase: Phase, total: int) -> AbstractContextManager[Progress]:
        """A phase begins; it lasts as long as the context."""
        return nullcontext(_Unseen())

    def made(self, items: Sequence[Item], receipts: Sequence[Path]) -> None:
        """All artifacts of a model are there, with their verdicts."""

    def reported(self, paths: ReportPaths) -> None:
        """The report is written."""

    def pushed(self, options: PushOptions, done: Pushed | Rehearsal) -> None:
        """A folder was published, or would be like this."""
