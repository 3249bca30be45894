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
from typing import TYPE_CHECKING

from qexport.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


MAX_SMALL_BYTES = 1 << 27
"""Of a small file. The largest in use, tokenizers of 250 000 words, take a quarter of it."""
_MAX_CONFIG_BYTES = 1 << 23
"""Of a config, which is walked many times; one that lists every expert of a large model has half of it."""
SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB = re.compile(rf"[0-9a-f]{{40}}|{SHA256.pattern}")


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

    Args:
        what: how messages call the file.

    Raises:
        InputError: it is no regular file but a folder, a pipe, a device or a socket.
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
    """All of a small file.

    Args:
        what: how messages call it.
        limit: the most bytes that it may have, if not what files of its name may.

    Raises:
        InputError: it is no regular file, too large, or cannot be read.
    """
    if limit is None:
        limit = _MAX_CONFIG_BYTES if path.name.endswith("config.json") else MAX_SMALL_BYTES
    try:
        with os.fdopen(open_regular(path, what), "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror or 'input/output error'}.") from error
    if len(data) > limit:
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
        raise InputError(f"{what} is larger than {size}, which no such file is.", hint="Is it what it says?")
    return data
