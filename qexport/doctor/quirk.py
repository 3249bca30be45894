"""The shape of a quirk: how to see it, whom it breaks, how to repair it. The table is in ``quirks.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qexport.doctor.draft import Draft
from qexport.doctor.finding import Breaks, Finding, Severity
from qexport.doctor.subject import Subject


@dataclass(frozen=True)
class Quirk:
    """One known quirk.

    Attributes:
        id: a stable word, ``group.what``.
        title: the quirk in general, in a few words.
        see: looks at a subject and says what is there, or ``None`` (or nothing). It must not need tensor data
            unless it can do without.
        repair: what qexport does about it, in words; for an error, the ways out.
        fix: the repair. Fixes run in table order on one draft, so each looks at the draft, not at what
            ``see`` found.
        breaks: the error text that its user would meet, by reader.
        reference: a permanent link.
        error: nothing is exported with it; without, and without a ``fix``, it is worth a note.
        explains: for an error: whatever else is wrong with tensors follows from it, and is not shown.
    """

    id: str
    title: str
    see: Callable[[Subject], str | None] = field(repr=False)
    repair: str
    fix: Callable[[Draft], None] | None = field(default=None, repr=False)
    breaks: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    error: bool = False
    explains: bool = False

    @property
    def severity(self) -> Severity:
        """What a finding of it means."""
        return "repaired" if self.fix is not None else "error" if self.error else "note"

    def detect(self, subject: Subject) -> Finding | None:
        """The finding, if the subject has this quirk."""
        if not (what := self.see(subject)):
            return None
        breaks = tuple(Breaks(*pair) for pair in self.breaks.items())
        return Finding(self.id, self.severity, what, breaks, self.repair, self.reference)


def as_read(_: Draft) -> None:
    """The whole repair of what is set right by reading, and written as published whatever it was."""
