"""The files of one artifact: written beside their final names, hashed on the way, fsynced, renamed.

Until :meth:`Sink.commit` nothing stands under a final name; :meth:`Sink.abort` leaves no trace. Threads
and descriptors are the run's (``qexport.onepass.crew``); bytes and hashes are the writer's
(``qexport.onepass.writer``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.onepass.files import silent, sync_folder
from qexport.onepass.writer import FileWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from qexport.formats.plan import ArtifactPlan, Region
    from qexport.onepass.crew import Crew


@dataclass(frozen=True)
class WrittenFile:
    """A file under its final name: size in bytes and SHA-256 as hex."""

    name: str
    size: int
    sha256: str


class Sink:
    """All files of one artifact.

    Args:
        plan: gives file names, sizes and headers.
        folder: where they go; it must exist, and be locked by this run.
        crew: of the run; it outlives the sink.
        there: regions that an interrupted run has written; ``None`` begins anew.
        say: is told what stood where an unfinished file has to be, and was set aside.

    Raises:
        EnvironmentProblem: a file cannot be made.
    """

    def __init__(
        self,
        plan: ArtifactPlan,
        folder: Path,
        crew: Crew,
        there: Iterable[Region] | None = None,
        say: Callable[[str], None] = silent,
    ) -> None:
        self._folder = folder
        self._writers: list[FileWriter] = []
        ahead = _gaps(plan)
        for region in there or ():
            ahead[region.file].append((region.offset, region.offset + region.nbytes))
        try:
            for file, spans in zip(plan.files, ahead, strict=True):
                writer = FileWriter(file, folder, crew, _joined(spans), keep=there is not None, say=say)
                self._writers.append(writer)
        except BaseException:
            self.abort(keep=there is not None)
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
    def numbers(self) -> Mapping[Path, int]:
        """The inode of every file by its final path, by which it is known again."""
        return {writer.final: writer.number for writer in self._writers}

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file by name. Only after :meth:`finish`."""
        return {writer.file.name: writer.digest.hexdigest() for writer in self._writers}

    def finish(self) -> None:
        """Wait for all writes, pad to the planned size, fsync. Raises EnvironmentProblem on failure."""
        for writer in self._writers:
            writer.finish()

    def commit(self) -> Sequence[WrittenFile]:
        """Give every file its final name. Only after :meth:`finish`. Raises EnvironmentProblem on failure."""
        written = []
        for writer in self._writers:
            writer.rename()
            written.append(WrittenFile(writer.file.name, writer.file.size, writer.digest.hexdigest()))
        for folder in {writer.final.parent: None for writer in self._writers}:
            sync_folder(folder)
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
