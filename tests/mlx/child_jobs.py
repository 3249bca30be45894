"""Programs that run jobs in an interpreter of their own, and stay: imports take longer than most jobs.

Both ends: :func:`answer` is the program's loop, :func:`ask` the tests' call. A line of JSON for each.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any


def answer(known: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """For each line ``[work, jobs]`` the results of the jobs; one that fails is ``{"error": ...}``."""
    warnings.simplefilter("ignore")
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        work, jobs = json.loads(line)
        results: list[dict[str, Any]] = []
        for job in jobs:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    results.append(known[work](*job))
            except Exception as error:  # noqa: BLE001 the parent judges
                results.append({"error": f"{type(error).__name__}: {error}"})
        print(json.dumps(results), file=told, flush=True)


def ask(python: str, program: Path, work: str, jobs: Iterable[list[Any]]) -> list[dict[str, Any]]:
    """Results of jobs by ``program``, which is started at the first call and whenever it has died."""
    child, log = _started(python, program)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps([work, list(jobs)]) + "\n")
    child.stdin.flush()
    if not (line := child.stdout.readline()):
        _started.cache_clear()
        log.seek(0)
        raise AssertionError(f"{program.name} {work} died with {child.wait()}: {log.read()[-3000:]}")
    found: list[dict[str, Any]] = json.loads(line)
    return found


@cache
def _started(python: str, program: Path) -> tuple[subprocess.Popen[str], IO[str]]:
    log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 as long as the child
    child = subprocess.Popen(
        [python, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    )
    atexit.register(_ended, child, log)
    return child, log


def _ended(child: subprocess.Popen[str], log: IO[str]) -> None:
    child.communicate()
    log.close()
