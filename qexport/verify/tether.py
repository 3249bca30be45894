"""Tie a child's life to its parent's on Linux, so that no model stays in memory after a ``kill -9`` of ours.

The kernel sends the signal when the *thread* that started the child ends: a session is to be closed in the
thread that opened it, as ``verify_gguf`` does. On other systems a llama-server goes
on, and our own child goes when it next looks at its standard input, which is after loading.

No ``preexec_fn``: it is not safe where we have threads. A Python that execs the program sets it instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["NOT_STARTED", "tethered"]

# First words of the wrapper's standard output where the program could not be started at all.
NOT_STARTED = "qexport: not started: "

_WRAPPER = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[2]):
    sys.exit(1)
try:
    os.execv(sys.argv[3], sys.argv[3:])
except OSError as error:
    print(sys.argv[1] + str(error.strerror), flush=True)
    sys.exit(127)
"""


def tethered(command: Sequence[str]) -> list[str]:
    """``command`` (an absolute path first) such that it is killed when we are gone, where that is known."""
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _WRAPPER, NOT_STARTED, str(os.getpid()), *command]
