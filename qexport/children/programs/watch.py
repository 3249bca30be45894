"""Watch over one program: ``python -I -S watch.py PARENT MEMORY PROGRAM [ARGUMENT ...]``.

Leads a process group and kills all of it when the process PARENT is gone (even by ``kill -9``, which nobody
else would notice), or when the group takes more than MEMORY bytes (0: no limit). It leaves as the program
does: with its code, or by its signal.

Memory is what the processes have written to, private or shared: a mapped model file is the page cache's, and
a limit of address space (RLIMIT_AS) would be in the way of CUDA, which reserves hundreds of gigabytes. Read
from /proc: other systems than Linux have no limit.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time

# First words of what is said on standard output in the program's place, for children/process.py.
NOT_STARTED, OVER_MEMORY = "qexport: not started: ", "qexport: over memory: "
_POLL_S = 0.05
_WEIGH_EVERY = 5


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
    turn = 0
    while not (ended := os.waitpid(program, os.WNOHANG))[0]:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        turn += 1
        if most and turn % _WEIGH_EVERY == 0 and (taken := _taken()) > most:
            print(OVER_MEMORY + str(taken), flush=True)
            os.killpg(0, signal.SIGKILL)
        time.sleep(_POLL_S)
    code = os.waitstatus_to_exitcode(ended[1])
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


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
