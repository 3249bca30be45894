"""The shape of a quirk: how to see it, whom it breaks, how to repair it. The table is in ``quirks.py``."""

from __future__ import annotations

from collections.abc import Callable
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
        severity: what a finding of it means.
        see: looks at a subject and says what is there, or ``None``. It must not need tensor data unless it
            can do without.
        repair: what qexport does about it, in words; for an error, the ways out.
        fix: the repair; needed if and only if ``severity`` is ``repaired``. Fixes run in table order on one
            draft, so each looks at the draft, not at what ``see`` found.
        breaks: (reader, error text that its user would meet).
        reference: a permanent link.
        explains: for an error: whatever else is wrong with tensors follows from it, and is not shown.
    """

    id: str
    title: str
    severity: Severity
    see: Callable[[Subject], str | None] = field(repr=False)
    repair: str
    fix: Callable[[Draft], None] | None = field(default=None, repr=False)
    breaks: tuple[tuple[str, str], ...] = ()
    reference: str = ""
    explains: bool = False

    def detect(self, subject: Subject) -> Finding | None:
        """The finding, if the subject has this quirk."""
        what = self.see(subject)
        if what is None:
            return None
        breaks = tuple(Breaks(*pair) for pair in self.breaks)
        return Finding(self.id, self.severity, what, breaks, self.repair, self.reference)
