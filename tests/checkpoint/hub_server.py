"""A small Hugging Face Hub on 127.0.0.1, serving folders to the real client.

It answers what ``huggingface_hub`` asks when it reads: the repository at a revision, its tree, and files with
HEAD, GET and ranges, under the headers the client insists on (``ETag``, ``X-Repo-Commit``, ``X-Error-Code``);
and llama.cpp, which asks for the branches, too.
It can refuse (gated, private, missing) and fail (a cut connection, a status) on request, and records every
request. Uploads are answered by ``tests/publish/push_server.py``. To add an endpoint, add a method and a line
to ``HubHandler._route``.

    with HubServer() as hub:
        hub.add("org/name", folder)
        HubCheckpoint("org/name", endpoint=hub.endpoint, cache_dir=tmp_path)

A process of its own gets the same through ``hub.environment(home)``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_for_tests"


@dataclass
class Repo:
    """A served folder; ``access`` is "public", "gated" (listed, not read) or "private" (with TOKEN only)."""

    folder: Path
    sha: str
    branches: set[str]
    access: str = "public"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    sent: int


@dataclass
class HubServer:
    """The server; a context manager that starts and stops it."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    # File name -> bytes to send before the connection breaks, once each.
    cuts: dict[str, int] = field(default_factory=dict)
    # File name -> status to answer, until removed.
    failures: dict[str, int] = field(default_factory=dict)
    ignore_ranges: bool = False
    # Answered to everything with status 200, when set.
    page: bytes | None = None
    # Answered to everything as an error, when set.
    status: int | None = None

    @property
    def handler(self) -> type[BaseHTTPRequestHandler]:
        """What answers; ``tests/publish/push_server.py`` has one that takes uploads, too."""
        return HubHandler

    def add(
        self, repo: str, folder: Path, *, access: str = "public", branches: tuple[str, ...] = ("main",)
    ) -> Repo:
        """Serve ``folder`` as ``repo``; the commit is a hash of its content."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
        self.repos[repo] = Repo(folder, digest.hexdigest(), set(branches), access)
        return self.repos[repo]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path) -> dict[str, str]:
        """Environment for a child process that shall see this Hub and nothing of the user's own."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def body_bytes(self, name: str) -> int:
        """How many bytes of file ``name`` were sent so far."""
        return sum(r.sent for r in self.requests if r.method == "GET" and r.path.endswith("/" + name))

    def __enter__(self) -> HubServer:
        self._connections: set[socket.socket] = set()
        hub = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request, client_address):
                """A client that went away is not news."""

        class Handler(self.handler):
            def setup(self):
                self.hub = hub
                hub._connections.add(self.request)
                super().setup()

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            # Handlers wait on connections that the client keeps open; this ends their wait.
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes, and a client waits 40 ms before it acks
    hub: HubServer

    def log_message(self, format, *args):  # noqa: A002 -- the base class's name
        """Requests are in ``hub.requests``."""

    def do_GET(self):
        self._route()

    def do_HEAD(self):
        self._route()

    def _route(self):
        path = urlsplit(self.path).path
        if self.hub.page is not None:
            self._send(self.hub.page, "text/html")
            return
        if self.hub.status is not None:
            self._error(self.hub.status, None, "told to fail")
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(match[1], unquote(match[2] or "main"))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(match[1], unquote(match[2]))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", path):
            self._refs(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], unquote(match[2]), unquote(match[3]))
        else:
            self._error(404, None, "not an endpoint of this Hub")

    def _info(self, name, revision):
        repo = self._repo(name, revision)
        if repo is not None:
            siblings = [{"rfilename": path} for path in self._paths(repo)]
            answer = {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": repo.sha,
                "siblings": siblings,
                "tags": [],
            }
            self._json({**answer, "private": repo.access == "private", "downloads": 0, "likes": 0})

    def _tree(self, name, revision):
        repo = self._repo(name, revision)
        if repo is not None:
            entries = [
                {"type": "file", "path": path, "size": file.stat().st_size, "oid": _etag(file)}
                for path, file in self._paths(repo).items()
            ]
            self._json(entries)

    def _refs(self, name):
        repo = self._repo(name, "main")
        if repo is not None:
            self._json({"branches": [{"name": each, "targetCommit": repo.sha} for each in repo.branches]})

    def _file(self, name, revision, path):
        repo = self._repo(name, revision)
        if repo is None:
            return
        if repo.access == "gated" and not self._authorized():
            self._error(401, "GatedRepo", "Access to this model is restricted.")
            return
        file = self._paths(repo).get(path)
        status = self.hub.failures.get(path)
        if file is None or status == 404:
            self._error(404, "EntryNotFound", "Entry not found", commit=repo.sha)
            return
        if status is not None:
            self._error(status, None, "told to fail")
            return
        data = file.read_bytes()
        asked = None if self.hub.ignore_ranges else self.headers.get("Range")
        start, stop = 0, len(data)
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(stop - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{_etag(file)}"')
        self.send_header("X-Repo-Commit", repo.sha)
        self.end_headers()
        if self.command == "HEAD":
            self._record(0)
            return
        cut = self.hub.cuts.pop(path, None)
        body = data[start:stop] if cut is None else data[start : min(start + cut, stop)]
        self._record(len(body))
        self.wfile.write(body)
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _repo(self, name, revision):
        """The repository, or None after an error was sent. The Hub does not tell missing from private."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.access == "private" and not self._authorized()):
            self._error(401, "RepoNotFound", "Repository not found")
            return None
        if revision not in repo.branches | {repo.sha}:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo

    def _authorized(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _paths(self, repo):
        files = sorted(path for path in repo.folder.rglob("*") if path.is_file())
        return {path.relative_to(repo.folder).as_posix(): path for path in files}

    def _json(self, value):
        self._send(json.dumps(value).encode(), "application/json")

    def _send(self, body, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._record(len(body))
        self.wfile.write(body)

    def _error(self, status, code, message, commit=None):
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._record(0)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _record(self, sent):
        self.hub.requests.append(Request(self.command, unquote(self.path), self.headers.get("Range"), sent))


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
