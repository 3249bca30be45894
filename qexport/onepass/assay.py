"""The assay: what each tensor would cost in each of several plans, from one read of the source.

Nothing is written. The plans of all candidates are walked together as the pass walks them; a tensor's rows
are read once, in the plans' own arrangement, and its sensitivities are arranged alike. Over all rows the
weighted energy is added up,

    1/2 * sum_r G_r * sum_c X_c * w_rc^2

and a fixed stride of them, all of a small tensor, is encoded and decoded as each plan would store them. The
error of the sample relative to its energy is nearly a constant of tensor and type, so

    E(type) = energy * error(sample) / energy(sample)

which is far steadier than a sample of errors: a few rows hold most of the energy of an output matrix. What
two plans store alike is encoded once. An expert that no token of the text reached has no sensitivity, which
means "not known": it counts as much as the mean of those of its stack that are known.

The answer does not depend on the number of threads: partial sums are added in the order of rows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from qexport.checkpoint.finite import nonfinite_count
from qexport.codecs.decoded import decode
from qexport.codecs.engines import ENGINES, Engine, engine_of
from qexport.evidence.sensitivity import Weights, reached, weights_of
from qexport.onepass.execute import default_threads
from qexport.onepass.needs import Needs
from qexport.onepass.rows import arranged_rows
from qexport.onepass.runs import nonfinite_error, spans_of
from qexport.onepass.steps import Lane, Step, merge_steps

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qexport.codecs.contract import Matrices
    from qexport.formats.plan import Arrangement, ArtifactPlan, PlannedTensor
    from qexport.progress import Progress


_SHARE = 32  # of a large tensor, every 32nd row at least
_FEWEST = 16  # samples at least, whatever the height of a tile


def assay(
    plans: Sequence[ArtifactPlan],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    engines: Sequence[Engine] = ENGINES,
    sampled: int = 1 << 20,
) -> list[dict[str, float]]:
    """Nats of divergence per token, by plan and canonical name; of tensors whose sensitivity is known.

    Infinity stands for a type that cannot hold the tensor.

    Args:
        plans: all over one model; what is known of its numbers is in their evidence.
        progress: in bytes of the source, of :func:`assayed_bytes` in all.
        sampled: values of a tensor that are encoded, at least; all of one that has no more.

    Raises:
        InputError: NaN or infinite weights; every such tensor is named and counted.
    """
    from qexport.evidence.stream import threads as torch_threads  # brings torch

    threads = threads or default_threads()
    steps = merge_steps(plans)
    needs = Needs(plans, steps)
    found: list[dict[str, float]] = [{} for _ in plans]
    bad: dict[str, int] = {}
    # Each worker is one thread: torch's own would only wait for each other.
    with torch_threads(1), ThreadPoolExecutor(threads, thread_name_prefix="assay") as pool:
        for number, step in enumerate(steps):
            known = _known(step, plans)
            needs.survey(known, lambda lane: spans_of(lane, engines), pool)
            for lane in known.lanes:
                samples, sample = _samples(lane, plans, needs), _sampled_rows(lane, sampled)
                calls = (partial(_weigh, samples, sample, span, engines) for span in spans_of(lane, engines))
                for run in _in_order(pool, calls, 3 * threads):
                    for total, sums in zip(samples, run.sums, strict=not run.nonfinite):
                        total.add(*sums)
                    if run.nonfinite:
                        bad[step.source.name] = bad.get(step.source.name, 0) + run.nonfinite
                    if progress is not None:
                        progress.advance(run.nbytes)
                for each in samples:
                    for plan in each.plans:
                        found[plan].setdefault(step.source.name, each.cost)
            needs.release(step, number)
    if bad:
        raise nonfinite_error(bad)
    return found


def sampled_values(values: int, least: int = 1 << 20) -> int:
    """About how many of a tensor's values are encoded in each type."""
    return max(min(values, least), values // _SHARE)


def assayed_bytes(plans: Sequence[ArtifactPlan]) -> int:
    """Bytes of rows that are looked at."""
    known = (_known(step, plans) for step in merge_steps(plans))
    return sum(
        math.prod(lane.outputs[0][1].matrix_shape) * step.source.nbytes // step.source.numel
        for step in known
        for lane in step.lanes
    )


def _known(step: Step, plans: Sequence[ArtifactPlan]) -> Step:
    """The step with those outputs of which something can be said."""
    return Step(step.source, tuple(out for out in step.outputs if _weights(plans[out[0]], out[1])))


def _weights(plan: ArtifactPlan, tensor: PlannedTensor) -> tuple[Weights, ...]:
    """What errors of the tensor weigh, where any of its matrices was reached.

    Nothing where rows become part of longer ones (a tower's patches): sensitivities are of other columns.
    """
    if tensor.matrix_shape[1] != tensor.source.matrix_shape[1]:
        return ()
    return tuple(part for part in weights_of(plan.evidence, tensor.canonical) if reached(part).any())


class _Scale:
    """The sensitivities of a tensor, for its rows and columns as they are arranged in the output."""

    def __init__(self, tensor: PlannedTensor, weights: Sequence[Weights]) -> None:
        import numpy as np

        rows, _ = tensor.matrix_shape
        order, columns = tensor.arrangement.row_order, tensor.arrangement.column_order
        self._source = np.arange(rows) if order is None else order
        self._parts: list[tuple[np.ndarray, np.ndarray, int]] = []
        for part in weights:
            known = reached(part)
            gradients = part.rows.astype(np.float64) * (0.5 * len(known) / known.sum())
            inputs = part.columns if columns is None else part.columns[:, columns]
            self._parts.append((gradients.reshape(-1), np.ascontiguousarray(inputs), part.rows.shape[1]))

    def costs(self, squares: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """What squares in these output rows cost, float64 ``(len(rows),)``."""
        import numpy as np

        source = self._source[rows]
        total = np.zeros(len(rows))
        for gradients, inputs, height in self._parts:
            matrices = source // height if len(inputs) > 1 else np.zeros_like(source)
            for matrix in np.unique(matrices):
                mine = np.flatnonzero(matrices == matrix)
                here = squares if len(mine) == len(rows) else squares[mine]
                total[mine] += gradients[source[mine]] * np.einsum("rc,c->r", here, inputs[matrix])
        return total


@dataclass(eq=False)
class _Sample:
    """What several plans store alike of one tensor, and the sums that say what it costs."""

    tensor: PlannedTensor
    known: Matrices
    scale: _Scale
    plans: list[int]
    energy: float = 0.0
    energy_of_sample: float = 0.0
    error_of_sample: float = 0.0

    def add(self, energy: float, energy_of_sample: float, error_of_sample: float) -> None:
        self.energy += energy
        self.energy_of_sample += energy_of_sample
        self.error_of_sample += error_of_sample

    @property
    def cost(self) -> float:
        if not self.energy_of_sample:
            return 0.0
        return self.energy * self.error_of_sample / self.energy_of_sample

    def error(self, rows: torch.Tensor, first: int, taken: np.ndarray, engines: Sequence[Engine]) -> float:
        """What storing some of ``rows`` costs, whose first is row ``first`` of the tensor."""

        stored, total = self.tensor.stored, 0.0
        _, encode = engine_of(stored, engines)
        for known, start, stop in self.known.parts(first, len(rows)):
            mine = taken[(taken >= start) & (taken < stop)]
            if not len(mine):
                continue
            values = rows[mine]
            packed = encode(stored, values, known)
            if packed.bad:
                return math.inf
            decoded = decode(stored, packed.streams, values.shape[1], known, self.tensor.source.dtype)
            squares = (decoded - values.float()).square().numpy()
            total += float(self.scale.costs(squares, first + mine).sum())
        return total


def _samples(lane: Lane, plans: Sequence[ArtifactPlan], needs: Needs) -> list[_Sample]:
    samples: dict[object, _Sample] = {}
    scales: dict[object, _Scale] = {}
    for number, tensor in lane.outputs:
        known, weights = needs.known((number, tensor)), _weights(plans[number], tensor)
        tables = [table for part in weights for table in (part.rows, part.columns)]
        arranged = (tensor.arrangement, _alike(*tables))
        key = (tensor.stored, arranged, _alike(known.importance, known.largest))
        if key in samples:
            samples[key].plans.append(number)
            continue
        if arranged not in scales:
            scales[arranged] = _Scale(tensor, weights)
        samples[key] = _Sample(tensor, known, scales[arranged], [number])
    return list(samples.values())


def _alike(*tables: np.ndarray | None) -> tuple[bytes, ...]:
    """The same for tables of the same numbers: each plan has read its matrix for itself."""
    return tuple(b"" if table is None else sha256(table.tobytes()).digest() for table in tables)


def _sampled_rows(lane: Lane, least: int) -> np.ndarray:
    """The rows that are encoded: tiles at a stride that is odd, since heads and experts have even heights."""
    import numpy as np

    rows, columns = lane.outputs[0][1].matrix_shape
    tile = math.lcm(*(tensor.stored.rows_together for _, tensor in lane.outputs))
    tiles = -(-rows // tile)
    wanted = sampled_values(rows * columns, least)
    stride = max(1, min(rows * columns // wanted, tiles // _FEWEST))
    stride -= 1 - stride % 2
    first = np.arange(stride // 2, tiles, stride) * tile
    every = (first[:, None] + np.arange(tile)).reshape(-1)
    return every[every < rows]


@dataclass(frozen=True)
class _Run:
    """What was found in a run of rows: for each sample its sums, or how many values are not finite."""

    nbytes: int
    nonfinite: int
    sums: list[tuple[float, float, float]]


def _weigh(
    samples: Sequence[_Sample], sample: np.ndarray, span: tuple[int, int], engines: Sequence[Engine]
) -> _Run:
    import numpy as np

    start, stop = span
    low, high = np.searchsorted(sample, span)
    taken = sample[low:high] - start
    sums: list[tuple[float, float, float]] = []
    arranged: dict[Arrangement, torch.Tensor] = {}
    energies: dict[_Scale, np.ndarray] = {}
    for each in samples:
        how = each.tensor.arrangement
        if how not in arranged:
            arranged[how] = arranged_rows(each.tensor.source, how, start, stop)
            if bad := nonfinite_count(arranged[how]):
                return _Run(arranged[how].nbytes, bad, [])
        if each.scale not in energies:
            squares = arranged[how].float().square().numpy()
            energies[each.scale] = each.scale.costs(squares, np.arange(start, stop))
        energy = energies[each.scale]
        error = each.error(arranged[how], start, taken, engines)
        sums.append((float(energy.sum()), float(energy[taken].sum()), error))
    return _Run(next(iter(arranged.values())).nbytes, 0, sums)


def _in_order(pool: Executor, calls: Iterable[Callable[[], _Run]], most: int) -> Iterator[_Run]:
    """The results, in order, of calls of which ``most`` are under way."""
    flying: deque[Future[_Run]] = deque()
    for call in calls:
        flying.append(pool.submit(call))
        if len(flying) >= most:
            yield flying.popleft().result()
    while flying:
        yield flying.popleft().result()
