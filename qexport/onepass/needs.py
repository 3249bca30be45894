"""What stored types need to know of numbers beforehand, provided step by step and let go afterwards.

Mean squared inputs come from the plan's evidence, with their columns arranged as the output's are. The
largest magnitude is found here: fused matrices share a scale, so all rows of all of them are looked at right
before the first is encoded. Values that are not finite are passed over: the pass reports them, and a scale
made of them would only hide where they are. Products of inputs and their largest magnitudes come from a pass
that goes along (:mod:`qexport.evidence.products`), layer by layer, so steps come in the order of layers
(:func:`in_layers`).
"""

from __future__ import annotations

import math
from threading import Lock
from typing import TYPE_CHECKING

from qexport.codecs.contract import Matrices
from qexport.codecs.feedback import unit_of
from qexport.evidence.store import Kind
from qexport.onepass.rows import arranged_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    import numpy as np
    import torch

    from qexport.evidence.products import InputProducts
    from qexport.formats.plan import ArtifactPlan, PlannedTensor
    from qexport.onepass.steps import Lane, Output, Step


INPUTS = (Kind.INPUT_LARGEST, Kind.SENT_LARGEST)
"""How large inputs are: of a tensor, at most one of them is needed."""
ALONG = (Kind.INPUT_PRODUCTS, *INPUTS)
"""What a pass that goes along provides."""


class Needs:
    """What is known in the pass over ``steps`` of ``plans``.

    Attributes:
        largest: by canonical name, for the tensors of which it is needed now.
    """

    def __init__(
        self,
        plans: Sequence[ArtifactPlan],
        steps: Sequence[Step],
        products: InputProducts | None = None,
    ) -> None:
        self.largest: dict[str, np.ndarray] = {}
        self._plans = plans
        self._products = products
        self._lanes: dict[str, tuple[Lane, PlannedTensor]] = {}
        self._last: dict[str, int] = {}  # the last step that needs the tensor's
        for number, step in enumerate(steps):
            self._last.update(dict.fromkeys(_names(step.outputs), number))
            for lane in step.lanes:
                for output in lane.outputs:
                    if output[1].canonical in _names([output]):
                        self._lanes.setdefault(output[1].canonical, (lane, output[1]))

    def survey(self, step: Step, spans: Callable[[Lane], Iterable[tuple[int, int]]], pool: Executor) -> None:
        """Find what the step needs and nobody has found yet."""
        if self._products is not None:
            for name in _along(step):
                self._products.reach(name)
        watching = []
        for name in _names(step.outputs):
            if name in self.largest:
                continue
            lane, tensor = self._lanes[name]
            found = Largest(tensor.shape)
            self.largest[name] = found.table
            watching += [pool.submit(_look, tensor, found, *span) for span in spans(lane)]
        for future in watching:
            future.result()

    def known(self, output: Output) -> Matrices:
        """What is known of an output of the present step."""
        number, tensor = output
        shape = tensor.shape
        squares, largest = None, None
        if need := tensor.need(Kind.INPUT_SQUARES):
            squares = self._plans[number].evidence.of(Kind.INPUT_SQUARES, need.of[0])
            if squares is not None and tensor.arrangement.column_order is not None:
                squares = squares[:, tensor.arrangement.column_order]
        if need := tensor.need(Kind.LARGEST):
            import numpy as np

            tables = [self.largest[name] for name in need.of if name in self.largest]
            largest = np.maximum.reduce(tables) if tables else None
        feedback = None
        need, unit = tensor.need(Kind.INPUT_PRODUCTS), unit_of(tensor.stored)
        if need and unit and self._products is not None:
            found = self._products.of(need.of[0], unit, tensor.arrangement.column_order)
            feedback = found if len(found) else None
        inputs = None
        for kind in INPUTS:
            if (need := tensor.need(kind)) and self._products is not None:
                inputs = self._products.measured(kind)[need.of[0]]
        return Matrices(shape[-2] if len(shape) == 3 else None, squares, largest, feedback, inputs)

    def release(self, step: Step, number: int) -> None:
        """Let go of what no step after ``number`` needs."""
        for name in _names(step.outputs):
            if self._last[name] <= number:
                self.largest.pop(name, None)


class Largest:
    """The largest finite magnitude of each matrix of a tensor, whose rows are shown in any order.

    Attributes:
        table: float64 ``(matrices,)``; 0 where nothing was seen.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        import numpy as np

        stack = len(shape) == 3
        self.table = np.zeros(shape[0] if stack else 1)
        self._height = shape[1] if stack else None
        self._lock = Lock()

    def observe(self, rows: torch.Tensor, first_row: int) -> None:
        """Look at ``(n, columns)`` rows, on any thread. Raises UsageProblem: rows beyond the last matrix."""
        from qexport.codecs.largest import largest_in

        at = first_row
        matrices = Matrices(self._height, largest=self.table)
        for _, start, stop in matrices.parts(first_row, len(rows)):
            matrix = (at + start) // self._height if self._height and len(self.table) > 1 else 0
            found = largest_in(rows[start:stop])
            with self._lock:
                self.table[matrix] = max(self.table[matrix], found)


def in_layers(steps: Sequence[Step], moment: Callable[[str], int]) -> list[Step]:
    """Steps in the order in which products of their inputs become known, else in their own.

    Args:
        moment: of a tensor.
    """
    keys: list[float] = []
    following = math.inf  # what needs no product stays before what came after it
    for step in reversed(steps):
        mine = [moment(name) for name in _along(step)]
        following = min([following, *mine])
        keys.append(max(mine, default=following))
    order = sorted(range(len(steps)), key=lambda number: keys[len(steps) - 1 - number])
    return [steps[number] for number in order]


def along(steps: Iterable[Step], *kinds: Kind) -> set[str]:
    """The tensors of whose inputs these kinds have to be known, which a pass that goes along provides."""
    return {name for step in steps for name in _along(step, *kinds)}


def _along(step: Step, *kinds: Kind) -> Iterator[str]:
    for _, tensor in step.outputs:
        for kind in kinds or ALONG:
            if need := tensor.need(kind):
                yield from need.of


def _look(tensor: PlannedTensor, found: Largest, start: int, stop: int) -> None:
    found.observe(arranged_rows(tensor.source, tensor.arrangement, start, stop), start)


def _names(outputs: Iterable[Output]) -> Iterator[str]:
    """The tensors whose largest magnitude these outputs need."""
    for _, tensor in outputs:
        if need := tensor.need(Kind.LARGEST):
            yield from need.of
