"""Files put into place: whole or not at all, never through a link, and nothing of others is lost.

A folder that is written into may hold anything: links, pipes, folders where a file is expected, ledgers from
elsewhere. What is written here is a new file beside the final name, renamed over it; so a link or a second
name of a file is replaced and never written through. What stands where something of ours has to be, and is
none of ours, is set aside under another name.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.errors import EnvironmentProblem, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


# A link is not followed; a pipe without a reader does not make us wait. Windows has neither word.
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def silent(words: str) -> None:
    """For callers who have nobody to tell."""


def temporary_name(name: str) -> str:
    """The name of a file until it is complete."""
    return f".{name}.part"


def plain_status(path: Path) -> os.stat_result | None:
    """The status of ``path`` where it is a regular file itself (no link to one) with no second name."""
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else None


def open_plain(path: Path, flags: int) -> int:
    """``os.open`` for regular files only. Raises OSError for links, pipes, folders and devices."""
    fd = os.open(path, flags | _PLAIN, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file")
    return fd


def read_plain(path: Path, limit: int) -> bytes | None:
    """The bytes of a regular file of at most ``limit``; ``None`` for anything else."""
    try:
        with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError):
        return None
    return data if len(data) <= limit else None


def replace_file(path: Path, data: bytes) -> None:
    """Make ``path`` a file with these bytes; see :func:`replace_with`."""
    replace_with(path, (data,))


def replace_with(path: Path, pieces: Iterable[bytes]) -> None:
    """Make ``path`` a file of these pieces, durably; what has that name until then stays until the end.

    Raises:
        UsageProblem: it lies in the Hub's cache.
        EnvironmentProblem: it cannot be written.
    """
    refuse_hub_cache(path)
    part = path.with_name(temporary_name(path.name))
    try:
        set_aside(part, unless_plain=True)
        part.unlink(missing_ok=True)
        fd = open_plain(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(fd, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise write_problem(error, path.name) from error
    sync_folder(path.parent)


def upwards(path: Path) -> tuple[Path, ...]:
    """A path and all above it, links followed."""
    real = Path(os.path.realpath(path))
    return (real, *real.parents)


def in_hub_cache(path: Path) -> bool:
    """Whether ``path`` is or would be in a repository of the Hub client's cache."""
    return any(
        above.name.startswith(("models--", "datasets--")) and (above / "snapshots").is_dir()
        for above in upwards(path)
    )


def refuse_hub_cache(path: Path) -> None:
    """Raises UsageProblem for places in the cache, which every program here reads and the client writes."""
    if in_hub_cache(path):
        raise UsageProblem(f"{path.name or path} lies in the Hub's cache", hint="Choose another --out.")


def set_aside(path: Path, say: Callable[[str], None] = silent, *, unless_plain: bool = False) -> None:
    """Give what has this name another one, and say so; nothing is deleted. Raises OSError.

    Args:
        unless_plain: leave a regular file with no second name where it is.
    """
    if not os.path.lexists(path) or (unless_plain and plain_status(path) is not None):
        return
    number = 0
    while os.path.lexists(kept := path.with_name(f"{path.name}.set-aside{number or ''}")):
        number += 1
    path.rename(kept)
    say(f"{path.name} was none of ours: it is set aside as {kept.name}")


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable. Raises EnvironmentProblem."""
    if os.name != "posix":
        return
    try:
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems that have no such thing
            raise write_problem(error, folder.name or str(folder)) from error


def write_problem(error: BaseException, name: str) -> BaseException:
    """What a user should hear of ``error`` while ``name`` was written; a defect stays what it is."""
    if not isinstance(error, OSError):
        return error  # a plan that contradicts itself keeps its traceback
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem(
            f"the disk is full: {name} could not be written",
            hint="Nothing was left under a final name. Free some space or choose another --out.",
        )
    return EnvironmentProblem(
        f"{name} could not be written: {error.strerror or error}", hint="Choose another --out."
    )
