"""The command line run in this process: as `python -m qexport`, without loading torch anew for each call."""

from __future__ import annotations

import gc
import io
import json
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()
