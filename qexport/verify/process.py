"""One child process that holds a runtime, watched from the outside.

llama.cpp aborts the whole process on a bad file, so no runtime runs in ours. The child gets a session
(process group) of its own, a log file for everything it prints, and a deadline; whatever happens, its whole
group is killed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qexport.errors import EnvironmentProblem
from qexport.verify.redact import redact
from qexport.verify.runtime import Failure, RuntimeFailure

__all__ = ["ServerProcess"]

Answer = TypeVar("Answer")

_POLL_S = 0.02
_LOG_LAG_S = 1.0
_LOG_LINES = 12
# llama.cpp's own log prefix, "0.00.011.116 E llama_model_load: ...", carries nothing for a reader.
_PREFIX = re.compile(r"^\d+\.\d+\.\d+\.\d+ (?P<level>[A-Z]) ")


class ServerProcess:
    """A child with a log, an answer file (its standard output) and a deadline.

    Args:
        command: what to run.
        what: how messages call it.
        time_limit: seconds it may live.
        first_line: written to its standard input, which then stays open until :meth:`kill`: a child that
            reads to the end of its input leaves when we die, however we die.
        secrets: strings replaced in quoted log lines before what looks like a host path is.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        what: str,
        time_limit: float,
        first_line: str = "",
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self.what = what
        self.started = time.monotonic()
        self.time_limit = time_limit
        self._secrets = dict(secrets or {})
        self._killed = False
        self._folder = tempfile.TemporaryDirectory(prefix="qexport-verify-", ignore_cleanup_errors=True)
        self._answers = Path(self._folder.name) / "answers"
        self._log = Path(self._folder.name) / "log"
        try:
            with self._answers.open("wb") as answers, self._log.open("wb") as log:
                self._child = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE,
                    stdout=answers,
                    stderr=log,
                    env=None if env is None else dict(env),
                    start_new_session=True,
                )
        except OSError as error:
            self._folder.cleanup()
            raise EnvironmentProblem(f"{what} cannot be started: {error.strerror or error}") from error
        self.say(first_line)

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        # A child that died at once has closed its end; wait_until reports that better than a broken pipe.
        with contextlib.suppress(OSError):
            if self._child.stdin is not None and line:
                self._child.stdin.write(line.encode() + b"\n")
                self._child.stdin.flush()

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.time_limit - (time.monotonic() - self.started)

    def answers(self) -> str:
        """What the child has written to its standard output, in whole lines."""
        text = self._answers.read_text(encoding="utf-8", errors="replace")
        return text[: text.rfind("\n") + 1]

    def answer(self, number: int = 0) -> dict[str, Any] | None:
        """The JSON object that the child has written as its ``number``-th, if it has; the rest is noise."""
        for line in self.answers().splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                if number == 0:
                    return found
                number -= 1
        return None

    def wait_until(self, probe: Callable[[], Answer | None]) -> Answer:
        """Call ``probe`` until it answers; a child that leaves or takes too long is a RuntimeFailure."""
        while True:
            # Asked first: a child that answered and then left has answered.
            gone = self._child.poll() is not None
            answer = probe()
            if answer is not None:
                return answer
            if gone:
                raise self.failure()
            if self.remaining <= 0:
                raise self.timed_out()
            time.sleep(_POLL_S)

    def timed_out(self) -> RuntimeFailure:
        """Kill the child and say that it took too long."""
        log = self.log_tail()
        self.kill()
        return RuntimeFailure(
            Failure.TIMEOUT, f"{self.what} was killed after {self.time_limit:g} seconds", log=log
        )

    def failure(self) -> RuntimeFailure:
        """Why the child left; a child that is still leaving gets a moment to do so."""
        try:
            code = self._child.wait(timeout=max(0.1, min(5.0, self.remaining)))
        except subprocess.TimeoutExpired:
            return RuntimeFailure(Failure.NONSENSE, f"{self.what} broke off an answer", log=self.log_tail())
        if code < 0:
            ending = f"was ended by {_signal_name(-code)}"
        else:
            ending = f"exited with code {code}"
        return RuntimeFailure(Failure.DIED, f"{self.what} {ending}", log=self.log_tail())

    def log_tail(self) -> tuple[str, ...]:
        """The last lines worth quoting: warnings and errors where the log marks them, else the last lines."""
        lines = self.log_lines()[-400:]
        marked = [_PREFIX.match(line) for line in lines]
        loud = [
            line for line, mark in zip(lines, marked, strict=True) if mark is None or mark["level"] in "EF"
        ]
        kept: list[str] = []
        for line in loud or lines:
            plain = _PREFIX.sub("", line).strip()
            for secret, public in self._secrets.items():
                plain = plain.replace(secret, public)
            plain = redact(plain)
            if plain and plain not in kept:
                kept.append(plain)
        return tuple(kept[-_LOG_LINES:])

    def log_lines(self) -> list[str]:
        """What the child has logged; llama.cpp logs in a thread that may lag behind its answer."""
        patience = time.monotonic() + _LOG_LAG_S
        while True:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            if lines or time.monotonic() > patience:
                return lines
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """End the child and whatever it started. Safe to call twice."""
        if self._killed:
            return  # reaped: by now its number may be somebody else's
        self._killed = True
        if self._child.poll() is None or hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    # start_new_session made the child's pid its group's id; helpers may outlive the leader.
                    os.killpg(self._child.pid, signal.SIGKILL)
                else:
                    self._child.kill()
        self._child.wait()
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()
        self._folder.cleanup()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
