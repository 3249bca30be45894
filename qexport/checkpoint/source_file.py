"""Files that are in use: what they were when they were first looked at, and weights read into our own memory.

Not mapped: a file that shrinks under a map, a disk that fails or a network share that goes away then ends the
process with SIGBUS, which nobody can catch. A read says what is wrong. It is no slower: rows are asked for by
the megabyte, from several threads, and what has been read stays in the system's page cache all the same.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.checkpoint.paths import open_regular
from qexport.checkpoint.tensors import StoredTensor, matrix_shape, torch_dtype
from qexport.errors import EnvironmentProblem

if TYPE_CHECKING:
    import torch

_AGAIN = "Put the file back as it was and start again."


class SourceFile:
    """A file of weights, opened when first read. Safe to use from several threads.

    Args:
        path: the file.
        file: its name in messages.
        size: its size in bytes when its header was checked.
    """

    def __init__(self, path: Path, file: str, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._lock = threading.Lock()
        self._fd: int | None = None

    def rows(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` of ``tensor`` as ``(stop - start, columns)`` in its stored dtype.

        Raises:
            EnvironmentProblem: the file is gone, has another size than before, or cannot be read.
        """
        import torch

        dtype = torch_dtype(tensor.dtype)
        columns = matrix_shape(tensor.shape)[1]
        rows = torch.empty((stop - start, columns), dtype=dtype)
        if rows.numel():
            offset = tensor.start + start * columns * dtype.itemsize
            self._read(memoryview(rows.view(-1).view(torch.uint8).numpy()), offset)  # type: ignore[arg-type]
        return rows

    def _read(self, into: memoryview, offset: int) -> None:
        fd, done = self._open(), 0
        while done < len(into):  # a call gives at most 2 GiB, and network file systems less as they like
            try:
                got = os.preadv(fd, [into[done:]], offset + done)
            except OSError as error:
                raise self._unreadable(error) from error
            if got == 0:
                message = f"{self._file} became shorter while it was in use: it ends at byte {offset + done}."
                raise EnvironmentProblem(message, hint=_AGAIN)
            done += got

    def _open(self) -> int:
        with self._lock:
            if self._fd is None:
                try:
                    fd = open_regular(self._path, self._file)
                except OSError as error:
                    raise self._unreadable(error) from error
                weakref.finalize(self, os.close, fd)
                size = os.fstat(fd).st_size
                if size != self._size:
                    what = f"changed while it was in use: {self._size} bytes before, {size} now"
                    raise EnvironmentProblem(f"{self._file} {what}.", hint=_AGAIN)
                self._fd = fd
            return self._fd

    def _unreadable(self, error: OSError) -> EnvironmentProblem:
        if error.errno == errno.ENOENT:
            return EnvironmentProblem(f"{self._file} is gone.", hint=_AGAIN)
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM):
            hint = "Check permissions and `ulimit -n`."
        else:
            hint = "Look at the disk or the network share, then start again: what is written is gone on from."
        return EnvironmentProblem(f"{self._file} cannot be read: {error.strerror or error}.", hint=hint)


@dataclass(frozen=True)
class Stamp:
    """The file behind a name. ``label`` is what may change while the contents stay: mode, owner, links."""

    device: int
    inode: int
    size: int
    written: int
    touched: int
    label: tuple[int, ...]

    def same_contents(self, other: Stamp) -> bool:
        """Whether nothing speaks for other contents.

        The time of writing can be set back by anyone, that of any change (``touched``) by nobody. It moves
        with a new mode, owner or second name as well; then those show it.
        """
        mine, theirs = (replace(each, touched=0, label=()) for each in (self, other))
        return mine == theirs and (self.touched == other.touched or self.label != other.label)

    def identity(self) -> list[int]:
        """What a later run goes by, on another mount perhaps."""
        return [self.size, self.written, self.touched, self.inode]


def stamp(path: Path) -> Stamp:
    """Of the file that ``path`` is or leads to. Raises OSError."""
    found = path.stat()
    label = (found.st_mode, found.st_uid, found.st_gid, found.st_nlink)
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, label)


def changed_since(path: Path, before: Stamp) -> bool:
    """Whether the file is another one than ``before``, or gone."""
    try:
        return not before.same_contents(stamp(path))
    except OSError:
        return True
