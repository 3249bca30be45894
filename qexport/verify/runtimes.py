"""The runtimes that prove a GGUF: llama.cpp from pip (xllamacpp), or the user's own llama-server.

Both end in the same HTTP session; they differ in what is started and in how it says that it is ready.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import qexport
from qexport.errors import EnvironmentProblem
from qexport.formats.gguf.ends import KNOWN_BY_TEXT
from qexport.verify.client import HttpSession
from qexport.verify.process import ServerProcess
from qexport.verify.redact import folders_of, redact
from qexport.verify.runtime import Failure, Runtime, RuntimeFailure, Session, Settings
from qexport.verify.tether import NOT_STARTED, tethered

__all__ = ["LlamaServer", "Xllamacpp"]

_LOOPBACK = "127.0.0.1"


class Xllamacpp(Runtime):
    """llama.cpp as the ``xllamacpp`` wheel carries it, in a child process.

    Args:
        command: what to run as the child; tests put a misbehaving one here.
    """

    name = "xllamacpp"
    drafts = True
    ends_by_text = KNOWN_BY_TEXT

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self._command = list(command or [sys.executable, "-m", "qexport.verify.llama_child"])

    def open(self, model: Path, settings: Settings) -> Session:
        """Load ``model`` in a child of its own."""
        request = {
            "model": str(model.resolve()),
            "context": settings.context,
            "threads": settings.threads,
            "draft_max": settings.draft_max,
        }
        process = ServerProcess(
            tethered(self._command),
            what="llama.cpp (xllamacpp)",
            time_limit=settings.time_limit,
            first_line=json.dumps(request),
            env=_child_env(),
            secrets=folders_of(model),
        )
        try:
            ready = process.wait_until(lambda: process.answer())
            if ready.get("event") == "missing":
                raise EnvironmentProblem(
                    f"xllamacpp cannot be imported: {redact(str(ready.get('reason')))}",
                    hint="pip install 'qexport[llama]', or name your own binary with --llama-server PATH",
                )
            if ready.get("event") == "refused":
                reason = f"llama.cpp could not load the file: {ready.get('reason')}"
                raise RuntimeFailure(Failure.REFUSED, reason, log=process.log_tail())
            address = urlsplit(str(ready.get("address", "")))
            if address.hostname is None or address.port is None:
                raise RuntimeFailure(Failure.NONSENSE, f"the child gave no address: {ready}")
            session = HttpSession(
                process,
                address.hostname,
                address.port,
                version=str(ready.get("version", "")),
                load_s=float(ready.get("load_s", 0.0)),
            )
            session.ready()
        except BaseException:
            process.kill()
            raise
        return session


class LlamaServer(Runtime):
    """The user's own ``llama-server``, started on a free loopback port."""

    name = "llama-server"
    drafts = True
    ends_by_text = KNOWN_BY_TEXT

    def __init__(self, binary: Path) -> None:
        # Absolute: a bare name would be looked up in PATH. Not resolved: links may choose a program by name.
        self._binary = binary.expanduser().absolute()

    def open(self, model: Path, settings: Settings) -> Session:
        """Start the server on ``model`` and wait until it is healthy."""
        if not self._binary.is_file():
            raise EnvironmentProblem(
                "llama-server cannot be started: no such file", hint="Give the path of the binary."
            )
        port = _free_port()
        process = ServerProcess(
            tethered([str(self._binary), *_server_options(model, settings, port)]),
            what="llama-server",
            time_limit=settings.time_limit,
            env=_child_env(),
            secrets=folders_of(model, self._binary),
        )
        try:
            session = HttpSession(process, _LOOPBACK, port)
            try:
                session.ready()
            except RuntimeFailure as failure:
                # The environment's problem, not the file's: nothing of llama.cpp ever ran.
                said = process.answers() if failure.kind is Failure.DIED else ""
                if said.startswith(NOT_STARTED):
                    reason = said.removeprefix(NOT_STARTED).strip()
                    raise EnvironmentProblem(f"llama-server cannot be started: {reason}") from failure
                raise
        except BaseException:
            process.kill()
            raise
        return session


def _server_options(model: Path, settings: Settings, port: int) -> list[str]:
    # Only options that builds of many months share; --no-warmup as in the child, so that load times compare.
    options = ["-m", str(model.resolve()), "-c", str(settings.context), "-np", "1", "--no-warmup"]
    options += ["--host", _LOOPBACK, "--port", str(port)]
    if settings.threads:
        options += ["-t", str(settings.threads)]
    if settings.draft_max:
        options += ["--spec-type", "draft-mtp", "--spec-draft-n-max", str(settings.draft_max)]
    return options


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _child_env() -> dict[str, str]:
    """Our environment, less what would change llama.cpp's settings, plus the way to this package.

    An aborting llama.cpp starts a debugger for a backtrace, which takes seconds and drowns its last words.
    """
    env = {
        key: value for key, value in os.environ.items() if not key.startswith(("LLAMA_ARG_", "LLAMA_API_"))
    }
    home = str(Path(qexport.__file__).resolve().parent.parent)
    env["GGML_NO_BACKTRACE"] = "1"
    env["PYTHONPATH"] = os.pathsep.join(part for part in (home, env.get("PYTHONPATH", "")) if part)
    return env
