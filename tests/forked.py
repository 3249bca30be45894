"""Processes of their own without seconds of imports for each: one that is ready is forked.

What CODE does beside defining ``main`` is done once, before.

    with Forked(CODE) as start:  # CODE defines main(*words)
        done = start("a", "b")  # a subprocess.CompletedProcess: exit code, or the signal that ended it
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_FORKING = """
import json, os, sys, traceback

space = {"__name__": "forked"}
exec(compile(sys.argv[1], "forked", "exec"), space)
for line in sys.stdin:
    words, *files = json.loads(line)
    child = os.fork()
    if not child:
        code = 1
        for number, path in enumerate((os.devnull, *files)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
        try:
            space["main"](*words)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forked:
    """Calls of the ``main`` that ``code`` defines, each in a process of its own.

    Forked on Linux alone: elsewhere system libraries do not take it well, and each call is started anew.
    """

    def __init__(self, code: str, *, env: dict[str, str] | None = None, timeout: float = 120) -> None:
        self._code, self._env, self._timeout = code, env, timeout
        self._warm: subprocess.Popen[str] | None = None
        if sys.platform == "linux":
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            command = [sys.executable, "-c", _FORKING, code]
            self._warm = subprocess.Popen(command, env=env, start_new_session=True, **pipes)

    def __call__(self, *words: Any) -> subprocess.CompletedProcess[str]:
        given = [*map(str, words)]
        if self._warm is None:
            command = [sys.executable, "-c", f"{self._code}\nimport sys\nmain(*sys.argv[1:])", *given]
            return subprocess.run(
                command, capture_output=True, text=True, check=False, env=self._env, timeout=self._timeout
            )
        assert self._warm.stdin is not None
        assert self._warm.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("out", "err")]
            self._warm.stdin.write(json.dumps([given, *map(str, files)]) + "\n")
            self._warm.stdin.flush()
            if not select.select([self._warm.stdout], [], [], self._timeout)[0]:
                self.__exit__()
                raise subprocess.TimeoutExpired(given, self._timeout)
            code = int(self._warm.stdout.readline())
            return subprocess.CompletedProcess(given, code, *(path.read_text() for path in files))

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        if self._warm is not None:
            os.killpg(self._warm.pid, signal.SIGKILL)
            self._warm.communicate()
            self._warm = None
