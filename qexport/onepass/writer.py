"""One file of an artifact, written at any offsets and hashed on the way.

Bytes may come in any order, at the offsets of the plan; gaps (alignment) are zeros. What comes front to back
is hashed as it passes; the rest is read back when the gap before it closes, which is soon after for files
laid out in the order of the pass. Writing and hashing are done by a thread of the crew, so that neither holds
up the encoders; both release the interpreter lock.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import hashlib
import os
from typing import TYPE_CHECKING, Any

from qexport.onepass.crew import PartFile
from qexport.onepass.files import set_aside, silent, temporary_name, write_problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qexport.formats.plan import PlannedFile
    from qexport.onepass.crew import Crew


_BEHIND = 128 << 20  # bytes before that which should be on disk by then
_READ_BACK = 4 << 20  # bytes read at a time to hash what did not come in order
_FLUSH = 32 << 20  # bytes after which the kernel is asked to start writing, so that fsync has little left


class FileWriter:
    """One planned file.

    Args:
        file: name, size, header.
        folder: where it goes.
        crew: whose threads and descriptors it uses.
        ahead: spans that need no writing: gaps, and what an interrupted run has written.
        keep: go on with that run's file.
        say: is told what was set aside.

    Raises:
        EnvironmentProblem: the file cannot be made.
    """

    def __init__(
        self,
        file: PlannedFile,
        folder: Path,
        crew: Crew,
        ahead: list[tuple[int, int]],
        *,
        keep: bool = False,
        say: Callable[[str], None] = silent,
    ) -> None:
        self.file = file
        self.final = folder / file.name
        self.digest = hashlib.sha256()
        self._files = crew.files
        self._lane = crew.lane_for(file.size)
        self._error: BaseException | None = None
        self._dirty = True  # written to since the last fsync
        self._complete = False
        self._committed = False
        self._hashed = 0  # everything before is written and hashed
        self._ahead = ahead  # spans behind that which are written, ascending, none touching another
        self._flushed = 0
        path = self.final.with_name(temporary_name(self.final.name))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not keep:
                set_aside(path, say, unless_plain=True)
                path.unlink(missing_ok=True)
            self._part = PartFile(path, fresh=not keep)
        except OSError as error:
            raise write_problem(error, file.name) from error
        try:
            with self._files.use(self._part) as fd:
                os.ftruncate(fd, file.size)  # gaps are zeros
        except OSError as error:
            self.discard(keep=keep)
            raise write_problem(error, file.name) from error
        self.put(0, file.header, lambda: None)

    @property
    def number(self) -> int:
        """Its inode."""
        return self._part.number

    def put(self, offset: int, data: Any, done: Callable[[], object]) -> None:
        """Queue ``data``; ``done`` is called once it is written. Raises EnvironmentProblem: see the sink."""
        if self._error is not None:
            raise write_problem(self._error, self.file.name) from self._error
        self._lane.put(lambda: self._do(offset, data, done))

    def sync(self) -> None:
        """Make durable what has been written so far. Raises EnvironmentProblem on failure."""
        if self._error is not None:  # from then on bytes were dropped
            raise write_problem(self._error, self.file.name) from self._error
        if not self._dirty:
            return
        self._dirty = False  # before: what is written meanwhile is for the next time
        try:
            with self._files.use(self._part) as fd:
                os.fsync(fd)
        except OSError as error:
            self._dirty = True
            raise write_problem(error, self.file.name) from error

    def finish(self) -> None:
        """Wait until all is written and durable. Raises EnvironmentProblem on failure."""
        self._lane.drain()
        if self._error is None and self._hashed != self.file.size:
            self._error = ValueError(
                f"{self.file.name}: {self._hashed} of {self.file.size} bytes were written"
            )
        self.sync()
        self._files.close(self._part)
        self._complete = True

    def rename(self) -> None:
        """Give it its final name."""
        if not self._complete:
            raise ValueError(f"{self.file.name} is not complete")
        try:
            if not self._part.is_there():
                raise OSError(errno.ESTALE, "another file was put in its place")
            self._part.path.replace(self.final)
        except OSError as error:
            raise write_problem(error, self.file.name) from error
        self._committed = True

    def discard(self, *, keep: bool = False) -> None:
        """Stop writing; remove the file where it has no final name and is not to be kept."""
        self._lane.drain()
        self._files.close(self._part)
        if not self._committed and not keep:
            with contextlib.suppress(OSError):  # what led here is the error to hear of
                if self._part.is_there():
                    self._part.path.unlink()

    def _do(self, offset: int, data: Any, done: Callable[[], object]) -> None:
        """What the lane's thread does: errors are told to the producer, at its next put or at the end."""
        try:
            if self._error is None:
                self._write(offset, memoryview(data).cast("B"))
        except BaseException as error:  # noqa: BLE001
            self._error = error
        try:
            done()
        except BaseException as error:  # noqa: BLE001  # the thread must go on, or the producer waits for ever
            self._error = self._error or error

    def _write(self, offset: int, data: memoryview) -> None:
        stop = offset + len(data)
        if offset == stop:
            return
        place = bisect.bisect_left(self._ahead, (offset, stop))
        taken = place > 0 and self._ahead[place - 1][1] > offset
        taken = taken or (place < len(self._ahead) and self._ahead[place][0] < stop)
        if offset < self._hashed or stop > self.file.size or taken:
            raise ValueError(
                f"{self.file.name}: bytes for {offset}..{stop} after {self._hashed} of {self.file.size}"
            )
        with self._files.use(self._part) as fd:
            at, view = offset, data
            while view:
                count = os.pwrite(fd, view, at)
                at, view = at + count, view[count:]
            self._dirty = True
            if offset == self._hashed:
                self.digest.update(data)
                self._hashed = stop
                self._catch_up(fd)
            else:
                self._ahead.insert(place, (offset, stop))
                self._join(place)
            if self._hashed - self._flushed >= _FLUSH:
                _start_writeback(fd, self._flushed, self._hashed)
                self._flushed = self._hashed

    def _join(self, place: int) -> None:
        """Make one span of those that touch, around ``place``."""
        spans = self._ahead
        while place + 1 < len(spans) and spans[place][1] == spans[place + 1][0]:
            spans[place : place + 2] = [(spans[place][0], spans[place + 1][1])]
        while place > 0 and spans[place - 1][1] == spans[place][0]:
            spans[place - 1 : place + 1] = [(spans[place - 1][0], spans[place][1])]
            place -= 1

    def _catch_up(self, fd: int) -> None:
        """Hash what was written ahead and has been reached."""
        while self._ahead and self._ahead[0][0] == self._hashed:
            _, stop = self._ahead.pop(0)
            while self._hashed < stop:
                data = os.pread(fd, min(_READ_BACK, stop - self._hashed), self._hashed)
                if not data:
                    raise OSError(errno.EIO, "what was written cannot be read back")
                self.digest.update(data)
                self._hashed += len(data)


def _start_writeback(fd: int, start: int, stop: int) -> None:
    """Ask the kernel to begin writing these pages, and to let go of those before them.

    POSIX_FADV_DONTNEED starts writing what is dirty and drops what is on disk already. So fsync has little
    left at the end, a 20 GB file does not fill the cache, and new pages are ones just freed: touching memory
    for the first time is what writing costs most, on virtual machines above all.
    """
    if hasattr(os, "posix_fadvise"):
        behind = max(0, start - _BEHIND)
        os.posix_fadvise(fd, behind, stop - behind, os.POSIX_FADV_DONTNEED)
