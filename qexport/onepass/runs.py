"""Runs of rows: what is read, looked at and encoded at a time: a few megabytes of one lane
(``qexport.onepass.steps``)."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.finite import nonfinite_count
from qexport.codecs.engines import encode_rows, engine_of
from qexport.errors import InputError
from qexport.onepass.rows import arranged_rows
from qexport.sizes import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from qexport.codecs.contract import Matrices
    from qexport.codecs.engines import Engine
    from qexport.formats.plan import PlannedTensor
    from qexport.onepass.needs import Needs
    from qexport.onepass.steps import Lane, Step


_EVEN_ROWS = 32  # encoders take rows by this many; runs of a multiple waste nothing


@dataclass(frozen=True)
class Run:
    """Output rows ``[start, stop)`` of a lane, and what is known of each output."""

    step: Step
    number: int
    lane: Lane
    known: tuple[Matrices, ...]
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


def runs_of(step: Step, number: int, engines: Sequence[Engine], needs: Needs) -> Iterator[Run]:
    for lane in step.lanes:
        known = tuple(needs.known(output) for output in lane.outputs)
        for start, stop in spans_of(lane, engines):
            yield Run(step, number, lane, known, start, stop)


def spans_of(lane: Lane, engines: Sequence[Engine]) -> Iterator[tuple[int, int]]:
    rows, columns = lane.outputs[0][1].matrix_shape
    stored = [tensor.stored for _, tensor in lane.outputs]
    tile = math.lcm(*(each.rows_together for each in stored))
    even = math.lcm(tile, _EVEN_ROWS)
    count = max(1, min(engine_of(each, engines)[0].run_values for each in stored) // max(1, columns))
    count = max(count // even * even, tile if tile > 1 else min(count, _EVEN_ROWS))
    for start in range(0, rows, count):
        yield start, min(rows, start + count)


def encode_run(run: Run, engines: Sequence[Engine], *, scan_only: bool) -> tuple[Run, int, list[Any]]:
    """Read the run's rows once, look for NaN and infinity, and encode them for each output."""
    encoded: list[Any] = []
    nonfinite = 0
    arranged: tuple[Any, Any] | None = None
    for (_, tensor), known in zip(run.lane.outputs, run.known, strict=True):
        if arranged is None or arranged[0] != tensor.arrangement:
            rows = arranged_rows(tensor.source, tensor.arrangement, run.start, run.stop)
            nonfinite = nonfinite or nonfinite_count(rows)
            arranged = (tensor.arrangement, rows)
        if nonfinite or scan_only:
            return run, nonfinite, []
        try:
            encoded.append(encode_rows(tensor.stored, arranged[1], run.start, known, engines))
        except InputError as error:  # the encoder knows rows, not names
            raise InputError(f"{tensor.name}: {error.message}", hint=error.hint) from error
    return run, nonfinite, encoded


def nonfinite_error(bad: Mapping[str, int]) -> InputError:
    """What is said of values that are not finite, counted by tensor."""
    lines = [f"{name}: {counted(count, 'value')}" for name, count in list(bad.items())[:10]]
    more = f"\n  ... and {len(bad) - 10} more tensors" if len(bad) > 10 else ""
    return InputError(
        f"{counted(sum(bad.values()), 'weight is', 'weights are')} NaN or infinite, in "
        f"{counted(len(bad), 'tensor')}:\n  " + "\n  ".join(lines) + more,
        hint="The merge or the training broke them. Merge again in float32, or from an earlier checkpoint.",
    )


class Pour:
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
