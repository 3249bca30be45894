"""The one pass over a model: every source tensor is read once for all artifacts that want it.

The plans of all artifacts are walked together, a source tensor at a time. Its rows go through the encoders
in runs of a few megabytes, in worker threads (numba, torch and ggml release the interpreter lock); results
are taken in order, so a stream of bytes is written front to back, whatever the number of threads. Memory is
the runs in flight, not the tensor.

Two things walk over a tensor again, one right after the other, so that the disk is not asked twice. Where
the largest value of some tensors has to be known first (``qexport.onepass.needs``), those tensors are looked
at just before: a few of one layer. And where two artifacts want one tensor's rows in different orders, each
has a walk.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.codecs.engines import ENGINES, Engine
from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.evidence.store import Kind
from qexport.onepass.crew import Crew
from qexport.onepass.disk import make_folder
from qexport.onepass.files import silent
from qexport.onepass.locks import locked
from qexport.onepass.needs import INPUTS, Needs, along, in_layers
from qexport.onepass.resume import Resume
from qexport.onepass.runs import Done, Landed, Pour, Run, encode_run, nonfinite_error, runs_of, spans_of
from qexport.onepass.sink import Sink, WrittenFile
from qexport.onepass.sources import Sources
from qexport.onepass.steps import Step, merge_steps
from qexport.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qexport.evidence.products import InputProducts
    from qexport.formats.plan import ArtifactPlan, Region


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
    say: Callable[[str], None] = silent,
    sources: Sources | None = None,
    wait: float = 0.0,
    engines: Sequence[Engine] = ENGINES,
    products: InputProducts | None = None,
) -> list[tuple[WrittenFile, ...]]:
    """Write every file of every plan into ``folder``.

    Args:
        plans: from formats; all over one model.
        folder: made if it is not there; or one folder for each plan.
        threads: encoder threads; as many as there are processors by default.
        resume: go on where an earlier run of the same plans stopped, and leave what the next may need. Who
            gives it holds the folders' locks; otherwise they are taken here.
        say: is told what was set aside.
        sources: what is read besides that which the plans show.
        wait: seconds to wait for another run in these folders, for who brings what took long to come by.
        engines: who encodes: of each type the first that knows it.
        products: how inputs go together and how large they are, for plans that need it.

    Returns:
        for each plan, its files with size and SHA-256.

    Raises:
        UsageProblem: a file would be written over a source, or into it; or ``products`` are missing.
        InputError: NaN or infinite weights; every such tensor is named and counted. Or a source changed.
        EnvironmentProblem: the disk is full or a file cannot be written.
    On any error before the last file is complete nothing is left behind, under a final name or another;
    with ``resume``, only what the next run goes on from.
    """
    threads = threads or default_threads()
    folders = [folder] * len(plans) if isinstance(folder, Path) else list(folder)
    sources = Sources.of(plans) | (sources or Sources())
    for plan, each in zip(plans, folders, strict=True):
        sources.refuse(each, [file.name for file in plan.files])
    for each in dict.fromkeys(folders):
        make_folder(each)
    steps = merge_steps(plans)
    if products is not None:
        steps = in_layers(steps, products.moment)
    elif along(steps):
        raise UsageProblem(
            "error feedback and scales of inputs need a text that goes through the model while it is written"
        )
    with ExitStack() as stack:
        if resume is None:
            stack.enter_context(locked(folders, say, wait=wait))
        start = 0 if resume is None else resume.begin(plans, folders, len(steps))
        if resume is not None and resume.complete:
            sources.refuse_changed()
            return resume.rename(plans, folders)
        there = _written_by(steps[:start], len(plans))
        crew = stack.enter_context(Crew())
        sinks: list[Sink] = []
        keep = start > 0
        # Removes what was not committed, or keeps it; nothing after a commit.
        stack.callback(lambda: _abort(sinks, keep=keep))
        for plan, its_folder, regions in zip(plans, folders, there, strict=True):
            sinks.append(Sink(plan, its_folder, crew, regions if start else None, say))
        if resume is not None:
            resume.opened({path: n for sink in sinks for path, n in sink.numbers.items()}, start)
        if progress is not None:
            progress.advance(sum(region.nbytes for regions in there for region in regions))
        pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="encode"))
        if products is not None:
            # Magnitudes of what was written before, too: the receipt has them all.
            products.follow(
                along(steps[start:], Kind.INPUT_PRODUCTS), *(along(steps, kind) for kind in INPUTS)
            )
        needs = Needs(plans, steps, products)
        walk = _Pass(steps, start, sinks, pool, threads, progress, resume, engines, needs)
        try:
            bad = walk.run()
            if bad:
                raise nonfinite_error(bad)
            for sink in sinks:
                sink.finish()
            sources.refuse_changed()
        except (EnvironmentProblem, KeyboardInterrupt):
            keep = resume is not None
            pool.shutdown(wait=True, cancel_futures=True)
            walk.record()
            raise
        except BaseException:
            if resume is not None:
                resume.forget()
            keep = False
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
        engines: Sequence[Engine],
        needs: Needs,
    ) -> None:
        self._steps = steps
        self._engines = engines
        self._needs = needs
        self._sinks = sinks
        self._pool = pool
        self._most_flying = 3 * threads
        self._progress = progress
        self._resume = resume
        self._done = Done(start)
        self._room = threading.Semaphore(6 * threads)  # runs being encoded, or encoded and not yet written
        self._flying: deque[Future[tuple[Run, int, list[Any]]]] = deque()
        self._pours: dict[tuple[int, int], list[Pour]] = {}
        self._bad: dict[str, int] = {}

    def run(self) -> dict[str, int]:
        """Counts of values that are not finite, by tensor."""
        for number in range(self._done.steps, len(self._steps)):
            step = self._steps[number]
            if not self._bad:
                self._needs.survey(step, lambda lane: spans_of(lane, self._engines), self._pool)
            runs = list(runs_of(step, number, self._engines, self._needs))
            self._needs.release(step, number)
            self._done.expect(number, len(runs))
            for run in runs:
                while not self._room.acquire(blocking=not self._flying):
                    self._land()
                self._flying.append(
                    self._pool.submit(encode_run, run, self._engines, scan_only=bool(self._bad))
                )
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
            self._resume.record(steps)
        except Exception:  # noqa: BLE001  # whatever it is, it is met again; the last entry stays true
            return

    def _land(self) -> None:
        run, nonfinite, encoded = self._flying.popleft().result()
        if nonfinite:
            name = run.step.source.name
            self._bad[name] = self._bad.get(name, 0) + nonfinite
        pieces: list[tuple[int, int, int, memoryview]] = []
        if not self._bad:
            for (number, tensor), parts in zip(run.lane.outputs, encoded, strict=True):
                key = (number, id(tensor))
                if key not in self._pours:
                    self._pours[key] = [Pour(tensor, stream) for stream in range(len(tensor.streams))]
                for streams in parts:
                    for pour, stream in zip(self._pours[key], streams, strict=True):
                        pieces += [(number, *piece) for piece in pour.take(memoryview(stream).cast("B"))]
        landed = Landed(run, self._room, self._done, waiting=len(pieces))
        for number, file, offset, view in pieces:
            self._sinks[number].write(file, offset, view, landed.written)
            if self._progress is not None:
                self._progress.advance(len(view))
