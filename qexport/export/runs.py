"""Runs of rows: what is read, looked at and encoded at a time: a few megabytes of one lane
(``qexport.export.steps``)."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.finite import nonfinite_count
from qexport.errors import InputError
from qexport.export.rows import arranged_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qexport.export.steps import Lane, Step
    from qexport.formats.plan import PlannedTensor


_RUN_VALUES = 1 << 21  # values per run of rows: 4 MB of bf16
_EVEN_ROWS = 32  # encoders take rows by this many; runs of a multiple waste nothing


@dataclass(frozen=True)
class Run:
    """Output rows ``[start, stop)`` of a lane."""

    step: Step
    number: int
    lane: Lane
    start: int
    stop: int


class Done:
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


class Landed:
    """A run whose bytes are on their way to the files: its memory is in use until all are written."""

    def __init__(self, run: Run, room: threading.Semaphore, done: Done, *, waiting: int) -> None:
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
        self._done.landed(self._run.number)
        self._room.release()


def runs_of(step: Step, number: int) -> list[Run]:
    return [Run(step, number, lane, *span) for lane in step.lanes for span in spans_of(lane)]


def spans_of(lane: Lane) -> Iterator[tuple[int, int]]:
    rows, columns = lane.outputs[0][1].matrix_shape
    tile = math.lcm(*(tensor.encoder.rows_together for _, tensor in lane.outputs))
    even = math.lcm(tile, _EVEN_ROWS)
    count = max(1, _RUN_VALUES // max(1, columns))
    count = max(count // even * even, tile if tile > 1 else min(count, _EVEN_ROWS))
    for start in range(0, rows, count):
        yield start, min(rows, start + count)


def observe(tensors: Sequence[PlannedTensor], start: int, stop: int) -> None:
    arranged: tuple[Any, Any] | None = None
    for tensor in tensors:
        if arranged is None or not arranged[0].same_as(tensor.arrangement):
            arranged = (
                tensor.arrangement,
                arranged_rows(tensor.source, tensor.arrangement, start, stop),
            )
        if tensor.encoder.survey is not None:
            tensor.encoder.survey.observe(arranged[1], start)


def encode_run(run: Run, *, scan_only: bool) -> tuple[Run, int, list[Any]]:
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
