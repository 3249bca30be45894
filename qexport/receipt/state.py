"""How far an artifact is proven: one list of states, and the one rule for exit codes.

Nothing counts as proven that was not run, nor what was run and not compared with its source, nor what is no
longer the file that was run: none is a failure. Terminal, ``--json``, receipts, cards, reports and gates have
these words.

    passed 0    failed 4    not run, or ran and not compared: 6, or 0 with --allow-unverified
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from qexport.errors import Unproven, VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qexport.errors import QexportError


class State(StrEnum):
    """From the best to the worst."""

    PASSED = "passed"
    UNCOMPARED = "ran, not compared"
    NOT_RUN = "not run"
    CHANGED = "changed since it was written"
    GONE = "not there any more"
    FAILED = "failed"

    @property
    def may_be_taken(self) -> bool:
        """Whether it is anything that somebody could choose."""
        return self not in (State.CHANGED, State.GONE, State.FAILED)


@dataclass(frozen=True)
class Lost:
    """A file that is not what its receipt says any more: ``GONE``, or ``CHANGED``."""

    file: str
    state: State


def worst(states: Iterable[State]) -> State:
    """The state of several artifacts together; of none, nothing is wrong."""
    order = list(State)
    return max(states, key=order.index, default=State.PASSED)


def problem(states: Iterable[State], *, allow_unverified: bool = False) -> type[QexportError] | None:
    """What a command ends with, whichever it is; ``None``: with 0.

    Args:
        allow_unverified: the user has said that what was not run, or not compared, is good enough.
    """
    state = worst(states)
    if state is State.FAILED:
        return VerificationError
    return None if state is State.PASSED or allow_unverified else Unproven
