"""What all files of a run share: a few threads that write and hash, and a few open descriptors.

A run may have a hundred artifacts of a dozen files each. Every file belongs to one thread, so that its bytes
come in the order in which they were given; its descriptor is opened when it is needed, and the one not used
for longest is closed. Neither number grows with the files.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections import Counter, OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qexport.onepass.files import open_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self


_LANES = 4
_QUEUE = 8  # chunks waiting per lane: enough to keep the disk busy, small beside the chunks in flight
_OPEN = 48  # far below what any system allows a process


class PartFile:
    """An unfinished file by its path, and by its number: nothing else is written to under that path."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        """Look it up, or (``fresh``) make it; raises OSError, too where a link or a pipe has the name."""
        self.path = path
        fd = open_plain(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if fresh else 0))
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        self.number = status.st_ino
        self._key = (status.st_dev, status.st_ino)

    def open(self) -> int:
        """A descriptor. Raises OSError when another file has the name by now."""
        fd = open_plain(self.path, os.O_RDWR)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != self._key:
            os.close(fd)
            raise OSError(errno.ESTALE, "another file was put in its place")
        return fd

    def is_there(self) -> bool:
        """Whether its name still is this file's."""
        status = self.path.lstat()
        return (status.st_dev, status.st_ino) == self._key


class OpenFiles:
    """Descriptors of the parts that were used last, ``most`` of them beside those in use.

    Closing one writes nothing out: whoever syncs opens the file again, and hears of an error that the kernel
    met in between (errors are kept with the file until somebody has seen them:
    https://docs.kernel.org/filesystems/vfs.html, "Handling errors during writeback").
    """

    def __init__(self, most: int = _OPEN) -> None:
        self._most = most
        self._open: OrderedDict[PartFile, int] = OrderedDict()
        self._used: Counter[PartFile] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, part: PartFile) -> Iterator[int]:
        """The descriptor of ``part``, good inside the context. Raises OSError."""
        with self._lock:
            if part not in self._open:
                self._make_room()
                self._open[part] = part.open()
            self._open.move_to_end(part)
            self._used[part] += 1
            fd = self._open[part]
        try:
            yield fd
        finally:
            with self._lock:
                self._used[part] -= 1

    def close(self, part: PartFile) -> None:
        """``part`` is not used any more."""
        with self._lock:
            if part in self._open:
                os.close(self._open.pop(part))
            del self._used[part]

    def _make_room(self) -> None:
        idle = [part for part in self._open if not self._used[part]]
        for part in idle[: max(0, len(self._open) + 1 - self._most)]:
            os.close(self._open.pop(part))


class Worker:
    """One thread and what waits for it. What a job raises is the job's own business: it must not raise."""

    def __init__(self, name: str) -> None:
        self.size = 0  # bytes of all files that are its own
        self._name = name
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_QUEUE)
        self._thread: threading.Thread | None = None

    def put(self, job: Callable[[], None]) -> None:
        """Have it done after all that was put before; waits where too much is waiting."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._waiting.put(job)

    def drain(self) -> None:
        """Wait until everything is done."""
        self._waiting.join()

    def close(self) -> None:
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            try:
                job()
            finally:
                del job  # or the last chunk stays in memory
                self._waiting.task_done()
        self._waiting.task_done()


class Crew:
    """The lanes and the open files of one run; a context manager that ends its threads."""

    def __init__(self, lanes: int = _LANES) -> None:
        self.files = OpenFiles()
        self._lanes = [Worker(f"write {number}") for number in range(lanes)]

    def lane_for(self, size: int) -> Worker:
        """The lane for a file of this size: the one that has least."""
        lane = min(self._lanes, key=lambda each: each.size)
        lane.size += size
        return lane

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self._lanes:
            lane.close()
