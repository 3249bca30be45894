"""Files that come from outside: which may be opened, how much is read, and where a link may lead.

A folder that somebody downloaded can hold a link to any file of this machine (``NOTICE -> ~/.netrc``), which
would be copied and published with the model; a pipe in the place of a file, on which a reader waits for ever;
or a config of gigabytes. One rule for all who read or send such folders: links lead to a place inside the
folder, or into the blobs of the Hub's cache that it is a snapshot of; only regular files are opened; small
files are small.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qexport.errors import InputError

MAX_SMALL_BYTES = 1 << 27
"""Of a small file. The largest in use, tokenizers of 250 000 words, take a quarter of it."""
_MAX_CONFIG_BYTES = 1 << 23
"""Of a config, which is walked many times; one that lists every expert of a large model has half of it."""
SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB = re.compile(f"{_COMMIT.pattern}|{SHA256.pattern}")
# A repository's folder in a Hub cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
_REPO = re.compile(r"models--(?P<repo>[\w.-]+)", re.ASCII)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Inside, an OSError comes out as an InputError that says that ``what`` cannot be read."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror or 'input/output error'}.") from error


def leads_out(folder: Path, path: Path) -> bool:
    """Whether ``path``, found in ``folder``, is a link (or lies behind one) that leads out of it.

    The folder may be a link itself: the user has named it. A snapshot of the Hub's cache
    (``models--*/snapshots/COMMIT``) is made of links to ``../../blobs/HASH``, which belong to it.
    """
    root, real = folder.resolve(), path.resolve()
    if real.is_relative_to(root):
        return False
    for snapshot in (root, *root.parents):
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repository.name.startswith("models--"):
            return real.parent != repository / "blobs" or not _BLOB.fullmatch(real.name)
    return True


def open_regular(path: Path, what: str) -> int:
    """A descriptor to read from.

    Raises:
        InputError: ``what``, as messages call it, is a folder, a pipe, a device or a socket.
        OSError: it cannot be opened.
    """
    # Looked at before, since opening some devices does something; without waiting, since it may be another
    # by then; looked at again, since only this is the file that is read.
    if stat.S_ISREG(path.stat().st_mode):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    raise InputError(f"{what} is not a regular file.", hint="Put the file itself in its place.")


def read_small(path: Path, what: str, *, limit: int | None = None) -> bytes:
    """All of a small file, which messages call ``what``.

    Raises InputError where it is no regular file, cannot be read, or has more than ``limit`` bytes (what
    files of its name may have, when not given).
    """
    if limit is None:
        limit = _MAX_CONFIG_BYTES if path.name.endswith("config.json") else MAX_SMALL_BYTES
    with reading(what), os.fdopen(open_regular(path, what), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
        raise InputError(f"{what} is larger than {size}, which no such file is.", hint="Is it what it says?")
    return data


@dataclass(frozen=True)
class Snapshot:
    """A folder of a Hub cache (``models--org--name/snapshots/<commit>``), labelled as the Hub itself is."""

    repo: str
    commit: str

    @property
    def label(self) -> str:
        return f"{self.repo}@{self.commit[:8]}"


def snapshot_of(folder: Path) -> Snapshot | None:
    """What ``folder``, or the folder that it links to, is a snapshot of; ``None`` for any other folder."""
    for path in (folder.absolute(), folder.resolve()):
        where = _REPO.fullmatch(path.parent.parent.name)
        if where and path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name):
            return Snapshot(where["repo"].replace("--", "/", 1), path.name)
    return None


def snapshot_folder(folder: Path) -> Path:
    """The snapshot that is meant where a repository's folder in the cache is given; else ``folder`` itself.

    Raises:
        InputError: there are several, and no ``refs/main`` says which.
    """
    inside = folder.resolve()
    snapshots = inside / "snapshots"
    if _REPO.fullmatch(inside.name) is None or not snapshots.is_dir():
        return folder
    found = sorted(path for path in snapshots.iterdir() if _COMMIT.fullmatch(path.name) and path.is_dir())
    main = inside / "refs" / "main"
    # A commit is 40 characters; what is longer is no reference.
    named = main.read_text(errors="replace")[:64].strip() if main.is_file() else ""
    chosen = [path for path in found if path.name == named] or (found if len(found) == 1 else [])
    if not chosen:
        commits = ", ".join(path.name[:8] for path in found) or "none"
        raise InputError(
            f"{folder.name} is a repository in the Hub's cache, and which snapshot is meant is not said.",
            hint=f"Give the folder of one, below {folder.name}/snapshots (there are: {commits}).",
        )
    return chosen[0]
