"""Findings: one thing about a checkpoint, whom it hurts and what is done about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

# error: cannot be exported without a decision; repaired: qexport repairs it; note: worth knowing.
Severity = Literal["error", "repaired", "note"]


@dataclass(frozen=True)
class Breaks:
    """A reader that a quirk breaks, and what its user sees: the error text, or else the effect."""

    reader: str
    message: str


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        id: a stable word such as ``mtp.lost``.
        what: what was seen in this checkpoint, with names and numbers.
        breaks: who breaks on it, and how.
        repair: what qexport does about it; for an error, the ways out.
        reference: a permanent link to where this was met, if there is one.
    """

    id: str
    severity: Severity
    what: str
    breaks: tuple[Breaks, ...] = ()
    repair: str = ""
    reference: str = ""

    def to_json(self) -> dict[str, Any]:
        """The finding as plain JSON values."""
        return {**asdict(self), "breaks": [asdict(each) for each in self.breaks]}
