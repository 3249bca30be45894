"""Watch over one program: ``python -I -S watch.py PARENT MEMORY PROGRAM [ARGUMENT ...]``.

Leads a process group and kills all of it when the process PARENT is gone (even by ``kill -9``, which nobody
else would notice), or when the group takes more than MEMORY bytes (0: no limit). It leaves as the program
does: with its code, or by its signal.

Nothing is polled where the system tells when a process ends (pidfd_open): it sleeps until then, or until
memory is weighed again, the rarer the more of it is left, since nothing writes it faster than ``_FASTEST``.

Memory is what the processes have written to, private or shared: a mapped model file is the page cache's, and
a limit of address space (RLIMIT_AS) would be in the way of CUDA, which reserves hundreds of gigabytes. Read
from /proc: other systems than Linux have no limit.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable

# First words of what is said on standard output in the program's place, for children/process.py.
NOT_STARTED, OVER_MEMORY = "qexport: not started: ", "qexport: over memory: "
_POLL_S = 0.05  # where the system does not tell
_FASTEST = 8e9  # bytes a second: what all cores of a large machine write into new memory
_SHORTEST, _LONGEST = 0.25, 4.0  # seconds between weighings


def main() -> None:
    """Start the program, watch, and leave as it does."""
    parent, most, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write("1000")  # where memory runs out nevertheless, it is not the parent that goes
    except OSError:
        pass
    try:
        usual = (signal.SIGPIPE, signal.SIGXFSZ)  # which Python ignores
        program = os.posix_spawn(command[0], command, os.environ, setsigdef=usual)
    except OSError as error:
        print(NOT_STARTED + str(error.strerror), flush=True)
        sys.exit(127)
    rest = _sleeper(parent, program)
    due = time.monotonic()
    while not (ended := os.waitpid(program, os.WNOHANG))[0]:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        if most and time.monotonic() >= due:
            if (taken := _taken()) > most:
                print(OVER_MEMORY + str(taken), flush=True)
                os.killpg(0, signal.SIGKILL)
            due = time.monotonic() + min(max((most - taken) / _FASTEST, _SHORTEST), _LONGEST)
        rest(max(due - time.monotonic(), 0.0) if most else None)
    code = os.waitstatus_to_exitcode(ended[1])
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _sleeper(*processes: int) -> Callable[[float | None], object]:
    """What waits until one of the processes has ended, at most so many seconds; otherwise for a moment."""
    try:
        ends = [os.pidfd_open(each) for each in processes]
    except (AttributeError, OSError):  # not Linux; an old one; forbidden; or one is gone already
        return lambda seconds: time.sleep(_POLL_S if seconds is None else min(seconds, _POLL_S))
    events = select.poll()
    for each in ends:
        events.register(each, select.POLLIN)
    return lambda seconds: events.poll(None if seconds is None else seconds * 1000)


def _taken() -> int:
    """Bytes that the group's processes have written to."""
    mine, total = str(os.getpgrp()), 0
    for name in os.listdir("/proc") if sys.platform.startswith("linux") else ():  # noqa: PTH208
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                group = file.read().rpartition(")")[2].split()[2]
            if group != mine:
                continue
            with open(f"/proc/{name}/status", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                lines = [line.split() for line in file if line.startswith(("RssAnon:", "RssShmem:"))]
        except (OSError, IndexError):
            continue  # it has just left
        total += sum(int(words[1]) for words in lines) * 1024
    return total


if __name__ == "__main__":
    main()
