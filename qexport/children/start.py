"""Starting the one program that runs engines (``programs/child.py``), and reading its first answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.children.failure import Failure, RuntimeFailure
from qexport.children.process import ChildProcess
from qexport.children.redact import redact
from qexport.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_PROGRAMS = Path(__file__).parent / "programs"


def engine_command(engine: str, python: Path | None = None, first: Sequence[Path] = ()) -> list[str]:
    """The command that runs an engine.

    Args:
        engine: the file beside ``child.py``, or an absolute path.
        python: the interpreter; ours if not given.
        first: files that it runs before the engine is loaded.
    """
    # Isolated: neither the current folder, nor PYTHON* variables, nor packages of the user's home.
    program = [str(_PROGRAMS / "child.py"), str(_PROGRAMS / engine)]
    return [str(python or sys.executable), "-I", *program, *map(str, first)]


def start(
    command: Sequence[str],
    request: Mapping[str, Any],
    *,
    what: str,
    install: str,
    time_limit: float,
    memory_limit: int = 0,
    env: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
) -> tuple[ChildProcess, dict[str, Any]]:
    """The child once it has loaded, and what it said then.

    Args:
        install: how to get what it needs.

    Raises:
        RuntimeFailure: the engine refuses what ``request`` names, or dies of it.
        EnvironmentProblem: it cannot be started, or what it runs is not installed.
    """
    process = ChildProcess(
        command,
        what=what,
        time_limit=time_limit,
        memory_limit=memory_limit,
        first_line=json.dumps(request),
        env=env,
        secrets=secrets,
    )
    try:
        ready = process.wait_until(process.answer)
        if ready.get("event") == "missing":
            reason = redact(str(ready.get("reason")))
            raise EnvironmentProblem(f"{what} cannot be imported: {reason}", hint=install)
        if ready.get("event") == "refused":
            reason = f"{what} could not load it: {ready.get('reason')}"
            raise RuntimeFailure(Failure.REFUSED, reason, log=process.log_tail())
    except BaseException:
        process.kill()
        raise
    return process, ready
