"""One base error: a sentence, the next step, and an exit code.

Everything that qexport refuses on purpose is raised as a :class:`QexportError`; the command line prints
its sentence and its next step and exits with its code. Any other exception is a defect and keeps its
traceback.
"""

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line; documented in docs/cli.md."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    INPUT = 3
    VERIFICATION = 4
    GATE = 5
    ENVIRONMENT = 6


class QexportError(Exception):
    """An error that the user can act on.

    Args:
        message: one sentence (or a few lines) saying what is wrong, naming the file or tensor.
        hint: the next step that the user can take, if there is one.
    """

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UsageProblem(QexportError):
    """The options contradict each other or name something that does not exist."""

    exit_code = ExitCode.USAGE


class InputError(QexportError):
    """The checkpoint, tokenizer, importance matrix or artifact cannot be used as it is."""

    exit_code = ExitCode.INPUT


class VerificationError(QexportError):
    """An artifact was written, but a runtime could not load or run it as promised."""

    exit_code = ExitCode.VERIFICATION


class Unproven(QexportError):
    """Nothing is wrong with an artifact, and nothing here has run it, or compared it with its source."""

    exit_code = ExitCode.ENVIRONMENT


class GateRefusal(QexportError):
    """An artifact runs, but does not keep a limit that a recipe sets."""

    exit_code = ExitCode.GATE


class NotBetter(QexportError):
    """The best file of a size was asked for, and the plain one is as good: that one was written."""

    exit_code = ExitCode.GATE


class EnvironmentProblem(QexportError):
    """The machine is the problem: disk full, a runtime or an optional package missing, no network."""

    exit_code = ExitCode.ENVIRONMENT


class SeveralProblems(QexportError):
    """Of several things that were asked for some ended with an error; the gravest has the exit code."""

    def __init__(self, message: str, errors: Iterable[QexportError], *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = min((error.exit_code for error in errors), key=_GRAVEST.index)


_GRAVEST = (
    ExitCode.FAILURE,
    ExitCode.VERIFICATION,
    ExitCode.GATE,
    ExitCode.INPUT,
    ExitCode.USAGE,
    ExitCode.ENVIRONMENT,
)


def some(names: Sequence[str], most: int = 8, between: str = ", ") -> str:
    """The first of many, as messages list them.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    shown = between.join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def closest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'types'?``, else the known words; empty where there are none.

    >>> closest("tpyes", ["types", "options"])
    "; did you mean 'types'?"
    >>> closest("x", ["types", "options"])
    '; known: types, options'
    """
    words = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word[:80].lower(), words, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {words[near[0]]!r}?"
    return f"; known: {some(list(words.values()), 40)}" if words else ""
