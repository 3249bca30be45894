"""A Hub on 127.0.0.1 that takes pushes: repositories with branches and commits, large-file storage, faults.

It answers what ``huggingface_hub`` calls when it publishes: create, preupload, the LFS batch, single and
multipart PUTs to signed addresses, completion, verification, commits with a parent, branches, settings and
the check of a card's front matter; and it serves every commit for reading, ranges included, and folders as
its base class does. As on the real Hub, a commit is refused when an object it names never arrived whole, or
when its parent is not the head.

Told to, it fails at any request: ``hub.faults.append(Fault("PUT", "/storage/", ("status", 503)))``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
from hub_server import HubHandler, HubServer, Request

TOKEN = "hf_" + "s3cretS3cretS3cretS3cretS3cretS3cr"
SIGNATURE = "X-Amz-Signature=verysecretsignature"


@dataclass
class Fault:
    """What goes wrong at requests of ``method`` whose path matches ``pattern``.

    ``do`` is one of ("status", 503), ("page", body with status 200), ("stall",), ("cut", bytes of the body to
    read before the connection breaks), ("lost",) for work that is done and an answer that never comes,
    ("expire",) for a token that is refused from here on, and ("call", function), after which the request is
    answered as usual.
    """

    method: str
    pattern: str
    do: tuple[Any, ...]
    times: int = 1
    skip: int = 0


@dataclass
class PushRepo:
    """``commits``: sha to {path: content}; ``branches``: name to sha."""

    private: bool
    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]

    def tree(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]

    def add(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit on top of ``branch``."""
        return self.record({**self.tree(branch), **files}, branch)

    def record(self, tree: dict[str, bytes], branch: str) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        digest.update(repr((len(self.commits), sorted(tree))).encode())
        self.commits[digest.hexdigest()] = tree
        self.branches[branch] = digest.hexdigest()
        return digest.hexdigest()


@dataclass
class PushHub(HubServer):
    """The server. ``objects`` holds what arrived whole, by SHA-256; ``puts`` every body that came by PUT."""

    pushed: dict[str, PushRepo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    puts: list[tuple[str, int]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    lfs_over: int = 16384
    part_size: int = 1 << 16
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def handler(self):
        return _PushHandler

    def serve_client(self, monkeypatch):
        """What this process's client talks to, over plain LFS, with a token."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def make(self, name: str, files: dict[str, bytes] | None = None, *, private: bool = False) -> PushRepo:
        """A repository with one commit."""
        repo = PushRepo(private, {"0" * 40: {}}, {"main": "0" * 40})
        repo.record({".gitattributes": b"*.gguf filter=lfs\n", **(files or {})}, "main")
        self.pushed[name] = repo
        return repo

    def sent(self, method: str, pattern: str = "") -> list[Request]:
        """The requests of this kind so far."""
        return [r for r in self.requests if r.method == method and re.search(pattern, r.path)]

    def is_lfs(self, path: str, size: int) -> bool:
        return size > 0 and (size > self.lfs_over or path.endswith((".gguf", ".safetensors")))


class _PushHandler(HubHandler):
    hub: PushHub

    def do_POST(self):  # noqa: N802 -- the base class's way
        self._route()

    def do_PUT(self):  # noqa: N802
        self._route()

    def _route(self):
        path = unquote(urlsplit(self.path).path)
        fault = self._fault(path)
        kind = fault.do[0] if fault else None
        if kind == "cut":
            self.rfile.read(fault.do[1])
            self._drop()
            return
        self.body = self._read()
        self.lost = kind == "lost"
        if kind == "stall":
            self._record(0)
            while self.connection.recv(1):
                continue
            self.close_connection = True
            return
        if kind == "status":
            self._error(fault.do[1], fault.do[2] if len(fault.do) > 2 else None, "told to fail")
            return
        if kind == "page":
            self._send(fault.do[1], "text/html")
            return
        if kind == "expire":
            self.hub.tokens.clear()
        if kind == "call":
            fault.do[1]()
        with self.hub.lock:
            self._answer(path)

    def _fault(self, path):
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times and fault.method == self.command and re.search(fault.pattern, path):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def _answer(self, path):
        served = re.match(r"(?:/api/models)?/([^/]+/[^/]+)", path)
        if served and served[1] in self.hub.repos and self.command in ("GET", "HEAD"):
            HubHandler._route(self)  # a folder that ``add`` serves, as the base class does
            return
        for method, pattern, answer in _ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                # Storage takes signed addresses, everything else a token.
                if not path.startswith(("/storage/", "/complete/")) and not self._authorized():
                    self._error(401, None, "Invalid credentials in Authorization header")
                    return
                answer(self, *match.groups())
                return
        self._error(404, None, f"not an endpoint of this Hub: {self.command} {path}")

    def _authorized(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.hub.tokens

    def _create(self):
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}"}
        if name in self.hub.pushed:
            self._send(
                json.dumps({**url, "error": "You already created this repo"}).encode(),
                "application/json",
                409,
            )
            return
        self.hub.make(name, private=asked.get("visibility") == "private")
        self._json(url)

    def _info(self, name, revision="main"):
        if name in self.hub.repos:
            super()._info(name, revision)
            return
        repo = self._known(name, revision)
        if repo is None:
            return
        siblings = []
        for path, data in repo.tree(revision).items():
            entry = {"rfilename": path, "size": len(data), "blobId": _blob(data)}
            if self.hub.is_lfs(path, len(data)):
                entry["lfs"] = {"size": len(data), "sha256": _sha256(data), "pointerSize": 130}
            siblings.append(entry)
        sha = repo.branches.get(revision, revision)
        answer = {"_id": "0", "id": name, "modelId": name, "sha": sha, "siblings": siblings, "tags": []}
        self._json({**answer, "private": repo.private, "downloads": 0, "likes": 0})

    def _resolve(self, name, revision, path):
        repo = self._known(name, revision)
        if repo is None:
            return
        data = repo.tree(revision).get(path)
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        body = data[int(first) : int(last) + 1 if last else None]
        self._send(body, "application/octet-stream", 206 if "Range" in self.headers else 200)

    def _preupload(self, name, revision):
        repo = self._known(name, revision)
        if repo is None:
            return
        tree, files = repo.tree(revision), []
        for file in json.loads(self.body)["files"]:
            path, there = file["path"], tree.get(file["path"])
            lfs = self.hub.is_lfs(path, file["size"])
            oid = None if there is None else _sha256(there) if lfs else _blob(there)
            mode = "lfs" if lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def _batch(self, name):
        objects = []
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            answer = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                storage = f"{self.hub.endpoint}/storage/{oid}"
                upload = {"href": f"{storage}?{SIGNATURE}", "header": {}}
                if size > self.hub.part_size:
                    count = -(-size // self.hub.part_size)
                    links = {str(n): f"{storage}/{n}?{SIGNATURE}" for n in range(1, count + 1)}
                    upload = {
                        "href": f"{self.hub.endpoint}/complete/{oid}",
                        "header": {"chunk_size": str(self.hub.part_size), **links},
                    }
                verify = {"href": f"{self.hub.endpoint}/{name}.git/info/lfs/verify", "header": {}}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        self._json({"transfer": "multipart", "objects": objects})

    def _put(self, oid, part=None):
        if SIGNATURE not in self.path:
            self._error(403, None, "not signed")
            return
        self.hub.puts.append((oid, len(self.body)))
        if part is None:
            self._store(oid, self.body)
        else:
            self.hub.parts[oid, int(part)] = self.body
        self._send(b"", "text/plain", etag=_sha256(self.body)[:32])

    def _complete(self, oid):
        parts = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self._store(oid, b"".join(self.hub.parts[oid, part] for part in parts))
        self._json({})

    def _store(self, oid, data):
        if _sha256(data) == oid:
            self.hub.objects[oid] = data

    def _verify(self, name):
        asked = json.loads(self.body)
        there = self.hub.objects.get(asked["oid"])
        if there is None or len(there) != asked["size"]:
            self._error(422, None, "the object is not there")
        else:
            self._json({})

    def _commit(self, name, revision):
        repo = self._known(name, revision)
        if repo is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        parent = header.get("parentCommit")
        if parent is not None and parent != repo.branches[revision]:
            self._error(412, None, "A commit has happened since. Please refresh and try again.")
            return
        tree = dict(repo.tree(revision))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif value["oid"] in self.hub.objects:
                tree[value["path"]] = self.hub.objects[value["oid"]]
            else:
                self._error(400, None, f"Your push was rejected: {value['path']} was never uploaded")
                return
        pull = "create_pr" in parse_qs(urlsplit(self.path).query)
        sha = repo.record(tree, f"refs/pr/{len(repo.commits)}" if pull else revision)
        answer = {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}", "commitOid": sha}
        if pull:
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{name}/discussions/1"
        self._json(answer)

    def _branch(self, name, branch):
        repo = self._known(name, "main")
        if repo is not None:
            repo.branches[branch] = repo.branches["main"]
            self._json({})

    def _settings(self, name):
        repo = self._known(name, "main")
        if repo is not None:
            repo.private = json.loads(self.body)["visibility"] == "private"
            self._json({})

    def _collection(self):
        asked = json.loads(self.body)
        slug = f"{asked['namespace']}/{asked['title'].lower().replace(' ', '-')}-0123abcd"
        there = slug in self.hub.collections
        made = {
            "slug": slug, "title": asked["title"], "owner": {"name": asked["namespace"]}, "items": [],
            "lastUpdated": "2026-11-29T00:00:00.000Z", "position": 0, "private": asked["private"],
            "theme": "blue", "upvotes": 0,
        }  # fmt: skip
        answer = self.hub.collections.setdefault(slug, made)
        self._send(json.dumps(answer).encode(), "application/json", 409 if there else 200)

    def _get_collection(self, slug):
        self._json(self.hub.collections[slug])

    def _add_item(self, slug):
        item = json.loads(self.body)["item"]
        if slug not in self.hub.collections:
            self._error(404, None, "no such collection")
            return
        found = self.hub.collections[slug]
        there = any(each["id"] == item["id"] for each in found["items"])
        if not there:
            found["items"].append({"_id": "0", "position": len(found["items"]), **item})
        self._send(json.dumps(found).encode(), "application/json", 409 if there else 200)

    def _yaml(self):
        front = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        if front is None:
            self._json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        else:
            self._json({"errors": [], "warnings": []})

    def _known(self, name, revision):
        repo = self.hub.pushed.get(name)
        if repo is None:
            self._error(404, "RepoNotFound", "Repository not found")
        elif revision not in repo.branches and revision not in repo.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo
        return None

    def _record(self, sent):
        # The client tells the Hub which program runs it, once a day, before anything else.
        if not self.path.startswith("/api/agent-harnesses"):
            super()._record(sent)

    def _read(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, body, kind, status=200, etag=None):
        if self.lost:
            self._drop()
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if etag is not None:
            self.send_header("ETag", etag)
        self.end_headers()
        self._record(len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _drop(self):
        self._record(0)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


_REPO, _REV = r"([^/]+/[^/]+)", r"([^/]+)"
_ROUTES = (
    ("POST", "/api/repos/create", _PushHandler._create),
    ("POST", "/api/validate-yaml", _PushHandler._yaml),
    ("POST", "/api/collections", _PushHandler._collection),
    ("GET", f"/api/collections/{_REPO}", _PushHandler._get_collection),
    ("POST", f"/api/collections/{_REPO}/items", _PushHandler._add_item),
    ("GET", f"/api/models/{_REPO}", _PushHandler._info),
    ("GET", f"/api/models/{_REPO}/revision/{_REV}", _PushHandler._info),
    ("POST", f"/api/models/{_REPO}/preupload/{_REV}", _PushHandler._preupload),
    ("POST", f"/api/models/{_REPO}/commit/{_REV}", _PushHandler._commit),
    ("POST", f"/api/models/{_REPO}/branch/{_REV}", _PushHandler._branch),
    ("PUT", f"/api/models/{_REPO}/settings", _PushHandler._settings),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _PushHandler._batch),
    ("POST", rf"/{_REPO}\.git/info/lfs/verify", _PushHandler._verify),
    ("PUT", r"/storage/([0-9a-f]{64})", _PushHandler._put),
    ("PUT", r"/storage/([0-9a-f]{64})/(\d+)", _PushHandler._put),
    ("POST", "/complete/([0-9a-f]{64})", _PushHandler._complete),
    ("GET", f"/{_REPO}/resolve/{_REV}/(.+)", _PushHandler._resolve),
    ("HEAD", f"/{_REPO}/resolve/{_REV}/(.+)", _PushHandler._resolve),
)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
