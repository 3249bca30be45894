"""The runtimes that prove a GGUF: llama.cpp from pip (xllamacpp), or the user's own llama-server.

Both end in the same HTTP session; they differ in what is started and in how it says that it is ready.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from qexport.children.process import ChildProcess, engine_command
from qexport.children.redact import folders_of
from qexport.errors import EnvironmentProblem
from qexport.formats.gguf.ends import KNOWN_BY_TEXT
from qexport.verification.client import HttpSession
from qexport.verification.lines import LineSession
from qexport.verification.memory import memory_limit
from qexport.verification.runtime import Runtime, Session, Settings, request_of

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
        self._command = list(command or engine_command("engine_llama.py"))

    def open(self, model: Path, settings: Settings) -> Session:
        """Load ``model`` in a child of its own."""
        process = ChildProcess(
            self._command,
            what="llama.cpp (xllamacpp)",
            time_limit=settings.time_limit,
            memory_limit=memory_limit(settings),
            request=request_of(model, settings),
            secrets=folders_of(model),
        )
        ready = process.ready(
            "pip install 'qexport[llama]', or name your own binary with --llama-server PATH"
        )
        try:
            address = urlsplit(str((ready.get("facts") or {}).get("address", "")))
            if address.hostname is None or address.port is None:
                raise process.nonsense("its start", f"no address: {ready}")
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

    def open_tower(self, model: Path, settings: Settings) -> Session:
        """The tower beside ``model`` alone, by the wheel's own library."""
        process = ChildProcess(
            engine_command("engine_llama_tower.py"),
            what="llama.cpp (xllamacpp)",
            time_limit=settings.time_limit,
            memory_limit=memory_limit(settings),
            request=request_of(model, settings),
            secrets=folders_of(model),
        )
        return LineSession(process, process.ready("pip install 'qexport[llama]'"))


class LlamaServer(Runtime):
    """The user's own ``llama-server``, started on a free loopback port."""

    name = "llama-server"
    drafts = True
    ends_by_text = KNOWN_BY_TEXT

    def __init__(self, binary: Path) -> None:
        # Absolute: a bare name would be looked up in PATH. Not resolved: links may choose a program by name.
        self._binary = binary.expanduser().absolute()

    def open_tower(self, model: Path, settings: Settings) -> Session:
        """By xllamacpp, where it is installed: a server does not say what its tower makes of a picture."""
        return Xllamacpp().open_tower(model, settings)

    def open(self, model: Path, settings: Settings) -> Session:
        """Start the server on ``model`` and wait until it is healthy."""
        if not self._binary.is_file():
            raise EnvironmentProblem(
                "llama-server cannot be started: no such file", hint="Give the path of the binary."
            )
        port = _free_port()
        process = ChildProcess(
            [str(self._binary), *_server_options(model, settings, port)],
            what="llama-server",
            time_limit=settings.time_limit,
            memory_limit=memory_limit(settings),
            secrets=folders_of(model, self._binary),
        )
        try:
            session = HttpSession(process, _LOOPBACK, port)
            session.ready()
        except BaseException:
            process.kill()
            raise
        return session


def llama_cpp(server: Path | None = None) -> Runtime:
    """The one from pip, or the user's own ``server``."""
    return Xllamacpp() if server is None else LlamaServer(server)


def _server_options(model: Path, settings: Settings, port: int) -> list[str]:
    # Only options that builds of many months share; --no-warmup as in the child, so that load times compare.
    context, parallel = str(settings.context * settings.parallel), str(settings.parallel)
    options = ["-m", str(model.resolve()), "-c", context, "-np", parallel, "--no-warmup"]
    options += ["--host", _LOOPBACK, "--port", str(port)]
    if settings.threads:
        options += ["-t", str(settings.threads)]
    if settings.draft_max:
        options += ["--spec-type", "draft-mtp", "--spec-draft-n-max", str(settings.draft_max)]
        if settings.drafter is not None:
            options += ["-md", str(settings.drafter.resolve())]
    if settings.projector is not None:
        options += ["--mmproj", str(settings.projector.resolve())]
    return options


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
