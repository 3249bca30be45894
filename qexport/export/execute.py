"""The one pass over a model: every source tensor is read once for all artifacts that want it.

The plans of all artifacts are walked together, a source tensor at a time. Its rows go through the encoders
in runs of a few megabytes, in worker threads (numba, torch and ggml release the interpreter lock); results
are taken in order, so files are written front to back and the bytes do not depend on the number of threads.
Memory is the runs in flight, not the tensor: rows come from mapped files whose pages are given back.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qexport.checkpoint.finite import nonfinite_count
from qexport.errors import InputError
from qexport.export.disk import make_folder
from qexport.export.rows import arranged_rows, source_ranges
from qexport.export.sink import Sink, WrittenFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from qexport.checkpoint.tensors import LogicalTensor
    from qexport.formats.plan import ArtifactPlan, PlannedTensor

__all__ = ["Progress", "Step", "default_threads", "execute", "merge_steps"]

_RUN_VALUES = 1 << 21  # values per run of rows: 4 MB of bf16
_EVEN_ROWS = 32  # encoders take rows by this many; runs of a multiple waste nothing


class Progress(Protocol):
    """What the pass tells whoever watches it."""

    def advance(self, nbytes: int) -> None:
        """``nbytes`` more bytes of output are written."""
        ...


@dataclass(frozen=True)
class Step:
    """One source tensor, and the output tensors made from it: (artifact number, planned tensor)."""

    source: LogicalTensor
    outputs: tuple[tuple[int, PlannedTensor], ...]


def default_threads() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def merge_steps(plans: Sequence[ArtifactPlan]) -> list[Step]:
    """Walk several plans at once, so that tensors of one source come together.

    Each plan's own order is kept. Raises ValueError when two plans order the same sources differently.
    """
    pending = [deque(_by_source(plan)) for plan in plans]
    ahead = [{key for key, _ in queue} for queue in pending]
    steps: list[Step] = []
    while any(pending):
        chosen = next((q[0][0] for q in pending if q and _is_next(q[0][0], pending, ahead)), None)
        if chosen is None:
            raise ValueError("two plans want the same source tensors in different orders")
        outputs: list[tuple[int, PlannedTensor]] = []
        for number, queue in enumerate(pending):
            if queue and queue[0][0] == chosen:
                key, members = queue.popleft()
                ahead[number].discard(key)
                if outputs and members[0].matrix_shape != outputs[0][1].matrix_shape:
                    raise ValueError(f"{members[0].name}: outputs of one source differ in shape")
                outputs.extend((number, tensor) for tensor in members)
        steps.append(Step(outputs[0][1].source, tuple(outputs)))
    return steps


def execute(
    plans: Sequence[ArtifactPlan],
    folder: Path,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[tuple[WrittenFile, ...]]:
    """Write every file of every plan into ``folder``.

    Args:
        plans: from formats; all over one model.
        folder: made if it is not there.
        threads: encoder threads; as many as there are processors by default.

    Returns:
        for each plan, its files with size and SHA-256.

    Raises:
        InputError: NaN or infinite weights; every such tensor is named and counted.
        EnvironmentProblem: the disk is full or a file cannot be written.
    On any error before the last file is complete nothing is left behind, under a final name or another.
    """
    threads = threads or default_threads()
    make_folder(folder)
    steps = merge_steps(plans)
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for plan in plans:
            sinks.append(Sink(plan, folder))
            stack.callback(sinks[-1].abort)  # removes what was not committed; nothing after a commit
        pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="encode"))
        bad = _run(steps, sinks, pool, threads, progress)
        if bad:
            raise _nonfinite_error(bad)
        for sink in sinks:
            sink.finish()
        return [tuple(sink.commit()) for sink in sinks]


def _run(
    steps: Sequence[Step],
    sinks: Sequence[Sink],
    pool: ThreadPoolExecutor,
    threads: int,
    progress: Progress | None,
) -> dict[str, int]:
    """Encode and write everything; once a bad value is met, only look for more of them."""
    bad: dict[str, int] = {}
    flying: deque[Future[tuple[_Run, int, list[Any]]]] = deque()
    room = threading.Semaphore(6 * threads)  # runs being encoded, or encoded and not yet written

    def land() -> None:
        run, nonfinite, encoded = flying.popleft().result()
        if nonfinite:
            name = run.step.source.name
            bad[name] = bad.get(name, 0) + nonfinite
        landed = _Landed(run, room, waiting=0 if bad else len(encoded))
        if bad:
            return
        for (number, tensor), data in zip(run.step.outputs, encoded, strict=True):
            width = tensor.encoder.row_bytes(tensor.matrix_shape[1])
            offset = tensor.region.offset + run.start * width
            sinks[number].write(tensor.region.file, offset, data, landed.written)
            if progress is not None:
                progress.advance(memoryview(data).nbytes)

    for run in _runs(steps):
        while not room.acquire(blocking=not flying):
            land()
        flying.append(pool.submit(_encode, run, scan_only=bool(bad)))
        while len(flying) > 3 * threads:
            land()
    while flying:
        land()
    return bad


@dataclass(frozen=True)
class _Run:
    """Output rows ``[start, stop)`` of a step."""

    step: Step
    start: int
    stop: int


class _Landed:
    """A run whose bytes are on their way to the files.

    Only when all are written may its source's pages go: bytes that need no encoding are still those pages.
    """

    def __init__(self, run: _Run, room: threading.Semaphore, *, waiting: int) -> None:
        self._run = run
        self._room = room
        self._waiting = waiting
        self._lock = threading.Lock()
        if not waiting:
            self._finish()

    def written(self) -> None:
        """One of the run's outputs is written; called by that file's thread."""
        with self._lock:
            self._waiting -= 1
            last = self._waiting == 0
        if last:
            self._finish()

    def _finish(self) -> None:
        step = self._run.step
        arrangement = step.outputs[0][1].arrangement
        for low, high in source_ranges(arrangement, self._run.start, self._run.stop):
            for piece in step.source.rows(low, high):
                piece.checkpoint.release(piece.name, piece.start, piece.stop)
        self._room.release()


def _runs(steps: Sequence[Step]) -> Iterator[_Run]:
    for step in steps:
        rows, columns = step.outputs[0][1].matrix_shape
        count = max(1, _RUN_VALUES // max(1, columns))
        count = max(count // _EVEN_ROWS * _EVEN_ROWS, min(count, _EVEN_ROWS))
        for start in range(0, rows, count):
            yield _Run(step, start, min(rows, start + count))


def _encode(run: _Run, *, scan_only: bool) -> tuple[_Run, int, list[Any]]:
    """Read the run's rows once, look for NaN and infinity, and encode them for each output."""
    encoded: list[Any] = []
    nonfinite = 0
    arranged: tuple[Any, Any] | None = None
    for _, tensor in run.step.outputs:
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


def _by_source(plan: ArtifactPlan) -> Iterator[tuple[Any, list[PlannedTensor]]]:
    """Neighbouring tensors of one source, keyed by where its rows are."""
    key: Any = None
    members: list[PlannedTensor] = []
    for tensor in plan.tensors:
        mine = tuple((id(p.checkpoint), p.name, p.start, p.stop) for p in tensor.source.pieces)
        if mine != key:
            if members:
                yield key, members
            key, members = mine, []
        members.append(tensor)
    if members:
        yield key, members


def _is_next(key: Any, pending: Sequence[deque[Any]], ahead: Sequence[set[Any]]) -> bool:
    return all(key not in keys or queue[0][0] == key for queue, keys in zip(pending, ahead, strict=True))


def _nonfinite_error(bad: dict[str, int]) -> InputError:
    lines = [f"{name}: {count} values" for name, count in list(bad.items())[:10]]
    more = f"\n  ... and {len(bad) - 10} more tensors" if len(bad) > 10 else ""
    return InputError(
        f"{sum(bad.values())} weights are NaN or infinite, in {len(bad)} tensors:\n  "
        + "\n  ".join(lines)
        + more,
        hint="The merge or the training broke them. Merge again in float32, or from an earlier checkpoint.",
    )
