"""The one pass over a model: every source tensor is read once for all artifacts that want it.

The plans of all artifacts are walked together, a source tensor at a time. Its rows go through the encoders
in runs of a few megabytes, in worker threads (numba, torch and ggml release the interpreter lock); results
are taken in order, so a stream of bytes is written front to back, whatever the number of threads. Memory is
the runs in flight, not the tensor: rows come from mapped files whose pages are given back.

Two things keep pages longer. Where encoders must know all rows of some tensors first (:class:`Survey`), those
tensors are looked at just before, and their pages stay until they are encoded: a few tensors of one layer.
And where two artifacts want one tensor's rows in different orders, each walks over it in turn, and its pages
go after the last.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qexport.checkpoint.finite import nonfinite_count
from qexport.errors import EnvironmentProblem, InputError
from qexport.export.disk import make_folder
from qexport.export.resume import Resume
from qexport.export.rows import arranged_rows, source_ranges
from qexport.export.sink import Sink, WrittenFile
from qexport.export.steps import Lane, Step, merge_steps, surveys_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qexport.formats.plan import ArtifactPlan, PlannedTensor, Region, Survey

__all__ = ["Progress", "default_threads", "execute"]

_RUN_VALUES = 1 << 21  # values per run of rows: 4 MB of bf16
_EVEN_ROWS = 32  # encoders take rows by this many; runs of a multiple waste nothing


class Progress(Protocol):
    """What the pass tells whoever watches it."""

    def advance(self, nbytes: int) -> None:
        """``nbytes`` more bytes of output are written."""
        ...


def default_threads() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def execute(
    plans: Sequence[ArtifactPlan],
    folder: Path | Sequence[Path],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    resume: Resume | None = None,
) -> list[tuple[WrittenFile, ...]]:
    """Write every file of every plan into ``folder``.

    Args:
        plans: from formats; all over one model.
        folder: made if it is not there; or one folder for each plan.
        threads: encoder threads; as many as there are processors by default.
        resume: go on where an earlier run of the same plans stopped, and leave what the next may need.

    Returns:
        for each plan, its files with size and SHA-256.

    Raises:
        InputError: NaN or infinite weights; every such tensor is named and counted.
        EnvironmentProblem: the disk is full or a file cannot be written.
    On any error before the last file is complete nothing is left behind, under a final name or another;
    with ``resume``, only what the next run goes on from.
    """
    threads = threads or default_threads()
    folders = [folder] * len(plans) if isinstance(folder, Path) else list(folder)
    for each in dict.fromkeys(folders):
        make_folder(each)
    steps = merge_steps(plans)
    start = resume.begin(plans, folders, len(steps)) if resume is not None else 0
    if resume is not None and resume.complete:
        return resume.rename(plans, folders)
    there = _written_by(steps[:start], len(plans))
    keep = False
    sinks: list[Sink] = []
    with ExitStack() as stack:
        # Removes what was not committed, or keeps it; nothing after a commit.
        stack.callback(lambda: _abort(sinks, keep=keep))
        for plan, its_folder, regions in zip(plans, folders, there, strict=True):
            sinks.append(Sink(plan, its_folder, regions if start else None))
        if progress is not None:
            progress.advance(sum(region.nbytes for regions in there for region in regions))
        pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="encode"))
        walk = _Pass(steps, start, sinks, pool, threads, progress, resume)
        try:
            bad = walk.run()
            if bad:
                raise _nonfinite_error(bad)
            for sink in sinks:
                sink.finish()
        except (EnvironmentProblem, KeyboardInterrupt):
            keep = resume is not None
            pool.shutdown(wait=True, cancel_futures=True)
            walk.record()
            raise
        except BaseException:
            if resume is not None:
                resume.forget()
            raise
        if resume is not None:
            keep = True  # all is on disk; from here on only names are given
            resume.finished([sink.hashes for sink in sinks], folders)
        return [tuple(sink.commit()) for sink in sinks]


def _abort(sinks: Sequence[Sink], *, keep: bool) -> None:
    for sink in sinks:
        sink.abort(keep=keep)


def _written_by(steps: Sequence[Step], plans: int) -> list[list[Region]]:
    """For each plan, the regions that these steps fill."""
    regions: list[list[Region]] = [[] for _ in range(plans)]
    for step in steps:
        for number, tensor in step.outputs:
            for stream in tensor.streams:
                regions[number].extend(stream)
    return regions


class _Pass:
    """Encode and write everything; once a bad value is met, only look for more of them."""

    def __init__(
        self,
        steps: Sequence[Step],
        start: int,
        sinks: Sequence[Sink],
        pool: ThreadPoolExecutor,
        threads: int,
        progress: Progress | None,
        resume: Resume | None,
    ) -> None:
        self._steps = steps
        self._sinks = sinks
        self._pool = pool
        self._most_flying = 3 * threads
        self._progress = progress
        self._resume = resume
        self._done = _Done(start)
        self._room = threading.Semaphore(6 * threads)  # runs being encoded, or encoded and not yet written
        self._flying: deque[Future[tuple[_Run, int, list[Any]]]] = deque()
        self._pours: dict[tuple[int, int], list[_Pour]] = {}
        self._bad: dict[str, int] = {}

    def run(self) -> dict[str, int]:
        """Counts of values that are not finite, by tensor."""
        surveyed: set[int] = set()
        for number in range(self._done.steps, len(self._steps)):
            step = self._steps[number]
            wanted = [survey for survey in surveys_of(step.outputs) if id(survey) not in surveyed]
            if wanted and not self._bad:
                self._survey(wanted)
                surveyed |= {id(survey) for survey in wanted}
            runs = _runs_of(step, number)
            self._done.expect(number, len(runs))
            for run in runs:
                while not self._room.acquire(blocking=not self._flying):
                    self._land()
                self._flying.append(self._pool.submit(_encode, run, scan_only=bool(self._bad)))
                while len(self._flying) > self._most_flying:
                    self._land()
            if self._resume is not None and self._resume.due():
                self.record()
        while self._flying:
            self._land()
        return self._bad

    def record(self) -> None:
        """Make what is written durable, and say so in the ledger."""
        if self._resume is None or self._bad:
            return
        steps = self._done.steps  # before the files are asked: one that has failed drops what comes after
        try:
            for sink in self._sinks:
                sink.sync()
        except Exception:  # noqa: BLE001  # whatever it is, it is met again; the last entry stays true
            return
        self._resume.record(steps)

    def _survey(self, wanted: Sequence[Survey]) -> None:
        """Show the surveys every row of every tensor that has them."""
        ids = {id(survey) for survey in wanted}
        watching = []
        for step in self._steps:
            for lane in step.lanes:
                mine = [tensor for _, tensor in lane.outputs if id(tensor.encoder.survey) in ids]
                watching += [self._pool.submit(_observe, mine, *span) for span in _spans(lane) if mine]
        for future in watching:
            future.result()

    def _land(self) -> None:
        run, nonfinite, encoded = self._flying.popleft().result()
        if nonfinite:
            name = run.step.source.name
            self._bad[name] = self._bad.get(name, 0) + nonfinite
        pieces: list[tuple[int, int, int, memoryview]] = []
        if not self._bad:
            for (number, tensor), data in zip(run.lane.outputs, encoded, strict=True):
                key = (number, id(tensor))
                if key not in self._pours:
                    self._pours[key] = [_Pour(tensor, stream) for stream in range(len(tensor.streams))]
                streams = data if isinstance(data, tuple) else (data,)
                for pour, stream in zip(self._pours[key], streams, strict=True):
                    pieces += [(number, *piece) for piece in pour.take(memoryview(stream).cast("B"))]
        landed = _Landed(run, self._room, self._done, waiting=len(pieces))
        for number, file, offset, view in pieces:
            self._sinks[number].write(file, offset, view, landed.written)
            if self._progress is not None:
                self._progress.advance(len(view))


class _Pour:
    """Bytes of one stream, poured into its regions one after another."""

    def __init__(self, tensor: PlannedTensor, stream: int) -> None:
        self._name = tensor.name
        self._regions = tensor.streams[stream]
        self._at = 0  # region
        self._filled = 0  # bytes of it

    def take(self, data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """(file, offset, bytes) for the next ``data`` of the stream."""
        while len(data):
            if self._at == len(self._regions):
                raise ValueError(f"{self._name}: the encoder gives more than the plan has room for")
            region = self._regions[self._at]
            count = min(len(data), region.nbytes - self._filled)
            if count:
                yield region.file, region.offset + self._filled, data[:count]
            data = data[count:]
            self._filled += count
            if self._filled == region.nbytes:
                self._at, self._filled = self._at + 1, 0


@dataclass(frozen=True)
class _Run:
    """Output rows ``[start, stop)`` of a lane. ``turn`` counts the runs of a step with several lanes."""

    step: Step
    number: int
    lane: Lane
    start: int
    stop: int
    turn: _Turn | None


class _Turn:
    """How many runs of a step with several lanes are still to land."""

    def __init__(self, runs: int) -> None:
        self._left = runs
        self._lock = threading.Lock()

    def last(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left == 0


class _Done:
    """How many steps, from the first, are written. Told by the files' threads."""

    def __init__(self, start: int) -> None:
        self._left: dict[int, int] = {}
        self._next = start
        self._lock = threading.Lock()

    @property
    def steps(self) -> int:
        with self._lock:
            return self._next

    def expect(self, step: int, runs: int) -> None:
        with self._lock:
            self._left[step] = runs

    def landed(self, step: int) -> None:
        with self._lock:
            self._left[step] -= 1
            while self._left.get(self._next) == 0:
                del self._left[self._next]
                self._next += 1


class _Landed:
    """A run whose bytes are on their way to the files.

    Only when all are written may its source's pages go: bytes that need no encoding are still those pages.
    """

    def __init__(self, run: _Run, room: threading.Semaphore, done: _Done, *, waiting: int) -> None:
        self._run = run
        self._room = room
        self._done = done
        self._waiting = waiting
        self._lock = threading.Lock()
        if not waiting:
            self._finish()

    def written(self) -> None:
        """One of the run's pieces is written; called by that file's thread."""
        with self._lock:
            self._waiting -= 1
            last = self._waiting == 0
        if last:
            self._finish()

    def _finish(self) -> None:
        run, source = self._run, self._run.step.source
        if run.turn is None:
            ranges = source_ranges(run.lane.outputs[0][1].arrangement, run.start, run.stop)
        else:
            ranges = [(0, source.matrix_shape[0])] if run.turn.last() else []
        for low, high in ranges:
            for piece in source.rows(low, high):
                piece.checkpoint.release(piece.name, piece.start, piece.stop)
        self._done.landed(run.number)
        self._room.release()


def _runs_of(step: Step, number: int) -> list[_Run]:
    spans = [list(_spans(lane)) for lane in step.lanes]
    turn = _Turn(sum(map(len, spans))) if len(spans) > 1 else None
    return [
        _Run(step, number, lane, start, stop, turn)
        for lane, its_spans in zip(step.lanes, spans, strict=True)
        for start, stop in its_spans
    ]


def _spans(lane: Lane) -> Iterator[tuple[int, int]]:
    rows, columns = lane.outputs[0][1].matrix_shape
    tile = math.lcm(*(tensor.encoder.rows_together for _, tensor in lane.outputs))
    even = math.lcm(tile, _EVEN_ROWS)
    count = max(1, _RUN_VALUES // max(1, columns))
    count = max(count // even * even, tile if tile > 1 else min(count, _EVEN_ROWS))
    for start in range(0, rows, count):
        yield start, min(rows, start + count)


def _observe(tensors: Sequence[PlannedTensor], start: int, stop: int) -> None:
    arranged: tuple[Any, Any] | None = None
    for tensor in tensors:
        if arranged is None or not arranged[0].same_as(tensor.arrangement):
            arranged = (
                tensor.arrangement,
                arranged_rows(tensor.source, tensor.arrangement, start, stop),
            )
        if tensor.encoder.survey is not None:
            tensor.encoder.survey.observe(arranged[1], start)


def _encode(run: _Run, *, scan_only: bool) -> tuple[_Run, int, list[Any]]:
    """Read the run's rows once, look for NaN and infinity, and encode them for each output."""
    encoded: list[Any] = []
    nonfinite = 0
    arranged: tuple[Any, Any] | None = None
    for _, tensor in run.lane.outputs:
        if arranged is None or not arranged[0].same_as(tensor.arrangement):
            rows = arranged_rows(tensor.source, tensor.arrangement, run.start, run.stop)
            nonfinite = nonfinite or nonfinite_count(rows)
            arranged = (tensor.arrangement, rows)
        if nonfinite or scan_only:
            return run, nonfinite, []
        try:
            encoded.append(tensor.encoder.encode(arranged[1], run.start))
        except InputError as error:  # the encoder knows rows, not names
            raise InputError(f"{tensor.name}: {error.message}", hint=error.hint) from error
    return run, nonfinite, encoded


def _nonfinite_error(bad: dict[str, int]) -> InputError:
    lines = [f"{name}: {count} values" for name, count in list(bad.items())[:10]]
    more = f"\n  ... and {len(bad) - 10} more tensors" if len(bad) > 10 else ""
    return InputError(
        f"{sum(bad.values())} weights are NaN or infinite, in {len(bad)} tensors:\n  "
        + "\n  ".join(lines)
        + more,
        hint="The merge or the training broke them. Merge again in float32, or from an earlier checkpoint.",
    )
