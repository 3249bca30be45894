"""The command line run as `python -m qexport`, without loading torch anew for each call.

In this process, or in one that is forked for the call."""

from __future__ import annotations

import atexit
import gc
import io
import json
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from forked import Forked

from qexport.cli.main import main


@dataclass(frozen=True)
class Ran:
    """What a command printed and its exit code."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """Stdout, which must be one JSON document."""
        return json.loads(self.stdout)


def run(*words: Any) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    argv, handler, threshold = sys.argv, signal.getsignal(signal.SIGTERM), gc.get_threshold()
    sys.argv = ["qexport", *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        raise AssertionError("main() did not exit")
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)
        gc.set_threshold(*threshold)
    assert isinstance(code, int)
    return Ran(code, out.getvalue(), err.getvalue())


def ok(*words: Any) -> Ran:
    """A command that must succeed."""
    ran = run(*words)
    assert ran.code == 0, ran.stderr
    return ran


# The libraries that take long to import; not the Hub's client, which looks at the environment then.
_APART = """
import json, os, sys
import numba, torch
import qexport.cli.main
def main(environment, *words):
    os.environ.update(json.loads(environment))
    sys.argv = ["qexport", *words]
    qexport.cli.main.main()
"""


def apart(*words: Any, environment: dict[str, str] | None = None) -> CompletedProcess[str]:
    """In a process of its own, with this in its environment besides; for two minutes at most."""
    return _apart()(json.dumps(environment or {}), *words)


@cache
def _apart() -> Forked:
    started = Forked(_APART)
    atexit.register(started.__exit__)
    return started


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()
