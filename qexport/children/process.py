"""One child process that holds something foreign, watched from the outside.

llama.cpp aborts the whole process on a bad file, and a template may run for ever, so neither runs in ours.
The child gets a session (process group) of its own, an empty folder to be in and to call its home, the
environment that ``environment.py`` lets through, a log file for everything it prints, a deadline, and on
Linux a limit of memory; whatever happens, also to us, its whole group is killed at the end
(``programs/watch.py``).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qexport.children.environment import child_environment
from qexport.children.failure import Failure, RuntimeFailure
from qexport.children.redact import redact
from qexport.errors import EnvironmentProblem, QexportError

Answer = TypeVar("Answer")

_POLL_S = (0.001, 0.02)  # at first, for short answers, and after a while
PROGRAMS = Path(__file__).parent / "programs"
# What watch.py says in the program's place.
_NOT_STARTED, _OVER_MEMORY = b"qexport: not started: ", b"qexport: over memory: "
_LOG_LAG_S = 1.0
_LOG_LINES = 12
# llama.cpp's own log prefix, "0.00.011.116 E llama_model_load: ...", carries nothing for a reader.
_PREFIX = re.compile(r"^\d+\.\d+\.\d+\.\d+ (?P<level>[A-Z]) ")


def engine_command(engine: str, python: Path | None = None, first: Sequence[Path] = ()) -> list[str]:
    """The command that runs an engine.

    Args:
        engine: the file beside ``child.py``, or an absolute path.
        python: the interpreter; ours if not given.
        first: files that it runs before the engine is loaded.
    """
    # Isolated: neither the current folder, nor PYTHON* variables, nor packages of the user's home.
    program = [str(PROGRAMS / "child.py"), str(PROGRAMS / engine)]
    return [str(python or sys.executable), "-I", *program, *map(str, first)]


class ChildProcess:
    """A child with a log, an answer file (its standard output) and limits.

    Args:
        command: what to run, an absolute path first.
        what: how messages call it.
        time_limit: seconds it may live.
        memory_limit: bytes that it may write to, with all that it starts; 0: no limit.
        request: written to its standard input as JSON; what is said later follows it, until :meth:`kill`.
        env: put into its environment beside what every child has.
        secrets: strings replaced in quoted log lines before what looks like a host path is.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        what: str,
        time_limit: float,
        memory_limit: int = 0,
        request: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self.what = what
        self.started = time.monotonic()
        self.time_limit = time_limit
        self._memory_limit = memory_limit
        self._secrets = dict(secrets or {})
        self._killed = False
        self._folder = tempfile.TemporaryDirectory(prefix="qexport-child-", ignore_cleanup_errors=True)
        home = Path(self._folder.name) / "home"
        home.mkdir()
        self._log = Path(self._folder.name) / "log"
        self._said: list[dict[str, Any]] = []
        self._words: list[bytes] = []
        self._rest = b""
        self._asked = 0
        answers = Path(self._folder.name) / "answers"
        watch = [sys.executable, "-I", "-S", str(PROGRAMS / "watch.py"), str(os.getpid()), str(memory_limit)]
        try:
            with answers.open("wb") as out, self._log.open("wb") as log:
                self._child = subprocess.Popen(
                    [*watch, *command],
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=log,
                    cwd=home,
                    env={**child_environment(home), **(env or {})},
                    start_new_session=True,
                )
            self._answers = answers.open("rb")
        except OSError as error:
            self._folder.cleanup()
            raise EnvironmentProblem(f"{what} cannot be started: {error.strerror or error}") from error
        if request is not None:
            self._say(request)

    def _say(self, value: Mapping[str, Any]) -> None:
        """Write a line to its standard input."""
        assert self._child.stdin is not None
        # A child that died at once has closed its end; wait_until reports that better than a broken pipe.
        with contextlib.suppress(OSError):
            self._child.stdin.write(json.dumps(value).encode() + b"\n")
            self._child.stdin.flush()

    def ready(self, install: str) -> dict[str, Any]:
        """What ``programs/child.py`` says once its engine has loaded; a child that does not is killed.

        Args:
            install: how to get what the engine needs.

        Raises:
            RuntimeFailure: the engine refuses what the request names, or dies of it.
            EnvironmentProblem: it cannot be started, or what it runs is not installed.
        """
        try:
            said = self.wait_until(self.answer)
            if said.get("event") == "missing":
                reason = redact(str(said.get("reason")))
                raise EnvironmentProblem(f"{self.what} cannot be imported: {reason}", hint=install)
            if said.get("event") == "refused":
                raise self.problem(Failure.REFUSED, f"could not load it: {said.get('reason')}")
        except BaseException:
            self.kill()
            raise
        return said

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.time_limit - (time.monotonic() - self.started)

    def answer(self, number: int = 0) -> dict[str, Any] | None:
        """The JSON object that the child has written as its ``number``-th, if it has; the rest is noise."""
        *whole, self._rest = (self._rest + self._answers.read()).split(b"\n")
        for line in whole:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                self._words.append(line)
                continue
            if isinstance(found, dict):
                self._said.append(found)
        return self._said[number] if number < len(self._said) else None

    def ask(self, do: str, *, within: float | None = None, **given: Any) -> Any:
        """One call of the child's engine (``programs/child.py``): the result.

        Args:
            within: seconds to wait, where that is less than the child has left.

        Raises:
            RuntimeFailure: the engine refuses, answers something else, takes too long, or is gone.
        """
        self._asked += 1
        number = self._asked
        self._say({"id": number, "do": do, "with": given})
        answer = self.wait_until(lambda: self.answer(number), within=within)
        if "error" in answer:
            raise self.problem(Failure.REFUSED, f"could not {do.replace('_', ' ')}: {answer['error']}")
        if answer.get("id") != number or "result" not in answer:
            raise self.nonsense(do, f"no answer to call {number}")
        return answer["result"]

    def problem(self, kind: Failure, words: str) -> RuntimeFailure:
        """What it did wrong, in words that follow its name, with the last that it said."""
        return RuntimeFailure(kind, f"{self.what} {words}", log=self.log_tail())

    def nonsense(self, what: str, error: object) -> RuntimeFailure:
        """An answer that is not what was promised."""
        return self.problem(Failure.NONSENSE, f"answered {what} with something else: {error}")

    def wait_until(self, probe: Callable[[], Answer | None], *, within: float | None = None) -> Answer:
        """Call ``probe`` until it answers; a child that leaves or takes too long is a RuntimeFailure."""
        pause, last = _POLL_S
        limit = self.remaining if within is None else min(within, self.remaining)
        deadline = time.monotonic() + limit
        while True:
            # Asked first: a child that answered and then left has answered.
            gone = self._child.poll() is not None
            answer = probe()
            if answer is not None:
                return answer
            if gone:
                raise self.failure()
            if time.monotonic() >= deadline:
                raise self.timed_out(within)
            time.sleep(pause)
            pause = min(last, 1.2 * pause)

    def timed_out(self, within: float | None = None) -> RuntimeFailure:
        """Kill the child and say that it took too long."""
        seconds = self.time_limit if within is None else within
        found = self.problem(Failure.TIMEOUT, f"was killed after {seconds:g} seconds")
        self.kill()
        return found

    def failure(self) -> QexportError:
        """Why the child left; a child that is still leaving gets a moment to do so."""
        try:
            code = self._child.wait(timeout=max(0.1, min(5.0, self.remaining)))
        except subprocess.TimeoutExpired:
            return self.problem(Failure.NONSENSE, "broke off an answer")
        self.answer()
        for word in self._words:
            if word.startswith(_NOT_STARTED):  # the environment's problem: nothing of it ever ran
                reason = word.removeprefix(_NOT_STARTED).decode(errors="replace")
                return EnvironmentProblem(f"{self.what} cannot be started: {reason}")
            if word.startswith(_OVER_MEMORY):
                taken = int(word.removeprefix(_OVER_MEMORY)) / 1e9
                limit = f"the limit was {self._memory_limit / 1e9:.2f}"
                words = f"was killed when it had taken {taken:.2f} GB of memory; {limit}"
                return self.problem(Failure.LACKING, words)
        ending = f"was ended by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"
        return self.problem(Failure.DIED, ending)

    def log_tail(self) -> tuple[str, ...]:
        """The last lines worth quoting: warnings and errors where the log marks them, else the last lines."""
        lines = self.log_lines()[-400:]
        loud = [line for line in lines if not (mark := _PREFIX.match(line)) or mark["level"] in "EF"]
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
            time.sleep(_POLL_S[1])

    def kill(self) -> None:
        """End the child and whatever it started. Safe to call twice."""
        if self._killed:
            return  # reaped: by now its number may be somebody else's
        self._killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # start_new_session made the child's pid its group's id; helpers may outlive the leader.
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()
        self._answers.close()
        self._folder.cleanup()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
