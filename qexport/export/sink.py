"""Files written beside their final name, hashed on the way, fsynced, renamed.

Every file has a thread of its own for writing and hashing, so that neither holds up the encoders; both
release the interpreter lock. Bytes may come in any order, at the offsets of the plan; gaps (alignment) are
zeros. What comes front to back is hashed as it passes; the rest is read back when the gap before it closes,
which is soon after for files laid out in the order of the pass. Until :meth:`Sink.commit` nothing stands
under a final name; :meth:`Sink.abort` leaves no trace.
"""

from __future__ import annotations

import bisect
import errno
import hashlib
import os
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from qexport.formats.plan import ArtifactPlan, PlannedFile, Region

__all__ = ["Sink", "WrittenFile", "sync_folder", "temporary_name"]

_QUEUE = 8  # chunks waiting per file: enough to keep the disk busy, small beside the chunks in flight
_BEHIND = 128 << 20  # bytes before that which should be on disk by then
_READ_BACK = 4 << 20  # bytes read at a time to hash what did not come in order
_FLUSH = 32 << 20  # bytes after which the kernel is asked to start writing, so that fsync has little left


@dataclass(frozen=True)
class WrittenFile:
    """A file under its final name: size in bytes and SHA-256 as hex."""

    name: str
    size: int
    sha256: str


def temporary_name(name: str) -> str:
    """The name of a file until it is complete."""
    return f".{name}.part"


class Sink:
    """All files of one artifact.

    Args:
        plan: gives file names, sizes and headers.
        folder: where they go; it must exist.
        there: regions that an interrupted run has written; ``None`` begins anew.
    """

    def __init__(self, plan: ArtifactPlan, folder: Path, there: Iterable[Region] | None = None) -> None:
        self._folder = folder
        self._writers: list[_FileWriter] = []
        ahead = _gaps(plan)
        for region in there or ():
            ahead[region.file].append((region.offset, region.offset + region.nbytes))
        try:
            for file, spans in zip(plan.files, ahead, strict=True):
                self._writers.append(_FileWriter(file, _joined(spans), folder, keep=there is not None))
        except BaseException:
            self.abort()
            raise

    def write(self, file: int, offset: int, data: Any, done: Callable[[], object]) -> None:
        """Queue ``data`` for ``offset`` of file number ``file``; ``done`` is called once it is written.

        Raises:
            EnvironmentProblem: an earlier write failed (disk full, I/O error).
        """
        self._writers[file].put(offset, data, done)

    def sync(self) -> None:
        """Make durable what has been written so far. Raises EnvironmentProblem on failure."""
        for writer in self._writers:
            writer.sync()

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file by name. Only after :meth:`finish`."""
        return {writer.file.name: writer.digest.hexdigest() for writer in self._writers}

    def finish(self) -> None:
        """Wait for all writes, pad to the planned size, fsync. Raises EnvironmentProblem on failure."""
        for writer in self._writers:
            writer.close()

    def commit(self) -> Sequence[WrittenFile]:
        """Give every file its final name. Only after :meth:`finish`."""
        written = []
        for writer in self._writers:
            writer.rename()
            written.append(WrittenFile(writer.file.name, writer.file.size, writer.digest.hexdigest()))
        sync_folder(self._folder)
        return written

    def abort(self, *, keep: bool = False) -> None:
        """Stop writing and remove what was not committed, or ``keep`` it for the next run."""
        for writer in self._writers:
            writer.discard(keep=keep)


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending, and one span of those that touch."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _gaps(plan: ArtifactPlan) -> list[list[tuple[int, int]]]:
    """For each file, the spans that no header and no tensor fills."""
    filled = [[(0, len(file.header))] for file in plan.files]
    for tensor in plan.tensors:
        for stream in tensor.streams:
            for region in stream:
                filled[region.file].append((region.offset, region.offset + region.nbytes))
    gaps: list[list[tuple[int, int]]] = []
    for file, spans in zip(plan.files, filled, strict=True):
        spans.sort()
        stops = [0, *(stop for _, stop in spans)]
        starts = [*(start for start, _ in spans), file.size]
        gaps.append([(stop, start) for stop, start in zip(stops, starts, strict=True) if stop < start])
    return gaps


class _FileWriter:
    def __init__(
        self, file: PlannedFile, ahead: list[tuple[int, int]], folder: Path, *, keep: bool = False
    ) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self._final = folder / file.name
        self._part = self._final.with_name(temporary_name(self._final.name))
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._queue: queue.Queue[tuple[int, Any, Callable[[], object]] | None] = queue.Queue(_QUEUE)
        self._error: BaseException | None = None
        self._complete = False
        self._committed = False
        self._hashed = 0  # everything before is written and hashed
        self._ahead = ahead  # spans behind that which are written, ascending, none touching another
        self._flushed = 0
        try:
            self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _problem(error, file.name) from error
        _claim(self._fd, file.name)
        if not keep:
            os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, file.size)  # gaps are zeros
        self._thread = threading.Thread(target=self._run, name=f"write {file.name}", daemon=True)
        self._thread.start()
        self.put(0, file.header, lambda: None)

    def put(self, offset: int, data: Any, done: Callable[[], object]) -> None:
        if self._error is not None:
            raise _problem(self._error, self.file.name) from self._error
        self._queue.put((offset, data, done))

    def sync(self) -> None:
        if self._error is not None:  # from then on bytes were dropped
            raise _problem(self._error, self.file.name) from self._error
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _problem(error, self.file.name) from error

    def close(self) -> None:
        self._stop()
        if self._error is None and self._hashed != self.file.size:
            self._error = ValueError(
                f"{self.file.name}: {self._hashed} of {self.file.size} bytes were written"
            )
        if self._error is None:
            try:
                os.fsync(self._fd)
                self._complete = True
            except OSError as error:
                self._error = error
        if self._error is not None:
            raise _problem(self._error, self.file.name) from self._error

    def rename(self) -> None:
        if not self._complete:
            raise ValueError(f"{self.file.name} is not complete")
        try:
            self._part.replace(self._final)
        except OSError as error:
            raise _problem(error, self.file.name) from error
        self._committed = True
        os.close(self._fd)
        self._fd = -1

    def discard(self, *, keep: bool = False) -> None:
        self._stop()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if not self._committed and not keep:
            self._part.unlink(missing_ok=True)

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            offset, data, done = item
            try:
                if self._error is None:
                    self._write(offset, memoryview(data).cast("B"))
            except BaseException as error:  # noqa: BLE001  # told to the producer at its next put, or at close
                self._error = error
            try:
                done()
            except BaseException as error:  # noqa: BLE001  # this thread must go on, or the producer waits for ever
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
        at, view = offset, data
        while view:
            count = os.pwrite(self._fd, view, at)
            at, view = at + count, view[count:]
        if offset == self._hashed:
            self.digest.update(data)
            self._hashed = stop
            self._catch_up()
        else:
            self._ahead.insert(place, (offset, stop))
            self._join(place)
        if self._hashed - self._flushed >= _FLUSH:
            _start_writeback(self._fd, self._flushed, self._hashed)
            self._flushed = self._hashed

    def _join(self, place: int) -> None:
        """Make one span of those that touch, around ``place``."""
        spans = self._ahead
        while place + 1 < len(spans) and spans[place][1] == spans[place + 1][0]:
            spans[place : place + 2] = [(spans[place][0], spans[place + 1][1])]
        while place > 0 and spans[place - 1][1] == spans[place][0]:
            spans[place - 1 : place + 1] = [(spans[place - 1][0], spans[place][1])]
            place -= 1

    def _catch_up(self) -> None:
        """Hash what was written ahead and has been reached."""
        while self._ahead and self._ahead[0][0] == self._hashed:
            _, stop = self._ahead.pop(0)
            while self._hashed < stop:
                data = os.pread(self._fd, min(_READ_BACK, stop - self._hashed), self._hashed)
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


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _claim(fd: int, name: str) -> None:
    """One writer per file: two runs into one folder would weave their bytes."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise EnvironmentProblem(
            f"another run is writing {name}", hint="Wait for it, or choose another --out."
        ) from error


def _problem(error: BaseException, name: str) -> BaseException:
    if not isinstance(error, OSError):
        return error  # a plan that contradicts itself is a defect and keeps its traceback
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem(
            f"the disk is full: {name} could not be written",
            hint="Nothing was left under a final name. Free some space or choose another --out.",
        )
    return EnvironmentProblem(f"{name} could not be written: {error.strerror or error}")
