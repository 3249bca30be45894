"""``pytest --costs``: the processor time of each file and test, the processes that they start among it.

Time on the wall depends on who else is on the machine; this hardly does.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Generator, Mapping
from typing import Any

import pytest

_SHOWN = 40
_SECONDS, _STARTED = "processor seconds", "processes started"


class Costs:
    """The plugin: workers count, the terminal's process adds up."""

    def __init__(self) -> None:
        self._began = 0.0
        self._started = 0
        self._tests: dict[str, Mapping[str, float]] = {}
        sys.addaudithook(self._hear)

    def _hear(self, event: str, _: Any) -> None:
        self._started += event in ("subprocess.Popen", "os.fork", "os.posix_spawn")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, Any, Any]:
        self._began, self._started = _processor_time(), 0
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        try:
            return (yield)
        finally:
            spent = _processor_time() - self._began
            item.user_properties += [(_SECONDS, spent), (_STARTED, self._started)]

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


def _processor_time() -> float:
    """Of this process and of those that it has started and that have ended."""
    return sum(os.times()[:4])
