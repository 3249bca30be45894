"""The shape of a quirk: how to see it, whom it breaks, how to repair it. The table is in ``quirks.py``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from qexport.doctor.draft import Draft
from qexport.doctor.finding import Breaks, Finding, Severity
from qexport.doctor.subject import Subject

# What is seen: a sentence, names of which there are too many or too few, a value, or that it is so.
Evidence = str | Collection[str] | bool | None


@dataclass(frozen=True)
class Quirk:
    """One known quirk.

    Attributes:
        id: a stable word, ``group.what``.
        title: the quirk in general, in a few words.
        see: looks at a subject and gives the evidence, nothing where the quirk is not there. It must not need
            tensor data unless it can do without.
        repair: what qexport does about it, in words; for an error, the ways out.
        fix: the repair. Fixes run in table order on one draft, so each looks at the draft, not at what
            ``see`` found.
        what: the sentence about this checkpoint: ``{found}`` is the evidence; of names, ``{count}`` and
            ``{first}`` too; ``{s}`` is the subject.
        breaks: the error text that its user would meet, by reader.
        reference: a permanent link.
        error: nothing is exported with it; without, and without a ``fix``, it is worth a note.
        explains: an error, from which whatever else is wrong with tensors follows; that is not shown.
    """

    id: str
    title: str
    see: Callable[[Subject], Evidence] = field(repr=False)
    repair: str
    fix: Callable[[Draft], object] | None = field(default=None, repr=False)
    what: str = "{found}"
    breaks: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    error: bool = False
    explains: bool = False

    @property
    def severity(self) -> Severity:
        """What a finding of it means."""
        return "repaired" if self.fix is not None else "error" if self.error or self.explains else "note"

    def detect(self, subject: Subject) -> Finding | None:
        """The finding, if the subject has this quirk."""
        found = self.see(subject)
        if not found:
            return None
        names = list(found) if isinstance(found, Collection) and not isinstance(found, str) else [str(found)]
        known = {"found": ", ".join(names), "count": len(names), "first": names[0], "s": subject}
        what = _in_number(self.what, len(names)).format(**known)
        breaks = tuple(Breaks(*pair) for pair in self.breaks.items())
        return Finding(self.id, self.severity, what, breaks, self.repair, self.reference)


_OF_ONE = (("tensors have", "tensor has"), ("tensors are", "tensor is"), ("tensors carry", "tensor carries"))


def _in_number(what: str, count: int) -> str:
    """A sentence about ``{count} tensors``, which may be one."""
    if count == 1:
        for more, one in (*_OF_ONE, ("tensors", "tensor")):
            what = what.replace(f"{{count}} {more}", f"{{count}} {one}")
    return what


def as_read(_: Draft) -> None:
    """The whole repair of what is set right by reading, and written as published whatever it was."""
