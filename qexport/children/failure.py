"""What goes wrong in a child process: one exception, with the last that the child said."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from qexport.children.redact import redact
from qexport.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Failure(StrEnum):
    """How a runtime failed."""

    REFUSED = "refused"  # it said no: the file, or a request
    DIED = "died"  # abort, segmentation fault, or any exit that nobody asked for
    TIMEOUT = "timeout"
    LACKING = "lacking"  # kernels or memory that this machine has not: nothing is said of the artifact
    NONSENSE = "nonsense"  # an answer that is not what the protocol promises


class RuntimeFailure(VerificationError):
    """The runtime could not do what was asked; ``log`` is the last it said. Neither has host paths."""

    def __init__(self, kind: Failure, message: str, *, log: Sequence[str] = ()) -> None:
        super().__init__(redact(message))
        self.kind = kind
        self.log = tuple(redact(line) for line in log)
