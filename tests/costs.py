"""``pytest --costs``: the processor time of each file and test, the processes that they start among it.

Time on the wall depends on who else is on the machine; this hardly does. What a process that stays does for a
test is counted there, on Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections import defaultdict
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

_SHOWN = 40
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_SECONDS, _STARTED = "processor seconds", "processes started"


class Costs:
    """The plugin: workers count, the terminal's process adds up."""

    def __init__(self) -> None:
        self._last = 0.0
        self._started = 0
        self._tests: dict[str, Mapping[str, float]] = {}
        sys.addaudithook(self._hear)
        _adopt_orphans()

    def _hear(self, event: str, _: Any) -> None:
        self._started += event in ("subprocess.Popen", "os.fork", "os.posix_spawn")

    def pytest_collection_finish(self) -> None:
        self._last = _processor_time()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        try:
            return (yield)
        finally:
            now = _processor_time()
            item.user_properties += [(_SECONDS, now - self._last), (_STARTED, self._started)]
            self._last, self._started = now, 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self._tests[report.nodeid] = dict(report.user_properties)  # type: ignore[arg-type]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        files: dict[str, list[float]] = defaultdict(lambda: [0.0, 0, 0])
        for test, found in self._tests.items():
            for number, value in enumerate((found.get(_SECONDS, 0), found.get(_STARTED, 0), 1)):
                files[test.partition("::")[0]][number] += value
        total = sum(each[0] for each in files.values())
        terminalreporter.section(f"{total:.0f} seconds of processors in {len(self._tests)} tests")
        for file, (seconds, started, tests) in sorted(files.items(), key=lambda each: -each[1][0])[:_SHOWN]:
            terminalreporter.write_line(f"{seconds:7.1f} s {tests:5} tests {started:4} processes  {file}")
        slowest = sorted(self._tests, key=lambda test: -self._tests[test].get(_SECONDS, 0))[:_SHOWN]
        for test in slowest:
            terminalreporter.write_line(f"{self._tests[test].get(_SECONDS, 0):7.1f} s  {test}")


def _adopt_orphans() -> None:
    """Those of a child that is killed come to us, not to init: their time would be lost. Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _processor_time() -> float:
    """Of this process and of all that it has started: ended, running or orphaned."""
    ended = sum(os.times()[:4])
    ticks: dict[int, int] = {}
    parents: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone, and counted by whoever waited for it
            words = file.read_text().rpartition(")")[2].split()
            process = int(file.parent.name)
            parents[process], ticks[process] = int(words[1]), sum(map(int, words[11:15]))
    ours = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return ended + sum(ticks[process] for process in ours - {os.getpid()}) / os.sysconf("SC_CLK_TCK")
