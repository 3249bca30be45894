"""Several plans as one walk over the source: which outputs are made from which source tensor, and when.

Outputs of one source tensor form a step, whatever place they have in their plans. Inside a step, outputs that
want the same rows in the same order form a lane: they are read together, a run of rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qexport.checkpoint.tensors import LogicalTensor
    from qexport.formats.plan import ArtifactPlan, PlannedTensor


Output = tuple[int, "PlannedTensor"]
"""The number of the artifact, and one of its tensors."""


@dataclass(frozen=True)
class Lane:
    """Outputs of one source with the same rows in the same order."""

    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class Step:
    """One source tensor, and the output tensors made from it."""

    source: LogicalTensor
    outputs: tuple[Output, ...]

    @cached_property
    def lanes(self) -> tuple[Lane, ...]:
        """The outputs, those together that can be read together."""
        groups: list[list[Output]] = []
        for output in self.outputs:
            mine = output[1]
            for group in groups:
                other = group[0][1]
                same = mine.matrix_shape == other.matrix_shape and mine.source.dtype == other.source.dtype
                if same and mine.arrangement.same_rows(other.arrangement):
                    group.append(output)
                    break
            else:
                groups.append([output])
        return tuple(Lane(tuple(group)) for group in groups)


def merge_steps(plans: Sequence[ArtifactPlan]) -> list[Step]:
    """Walk several plans at once, so that all tensors of one source come together.

    Each plan's own order is kept as far as the others' allow: files that are laid out in it are then written
    front to back. Where two plans contradict each other, the first one's order holds.
    """
    pending = [_by_source(plan) for plan in plans]
    steps: list[Step] = []
    while any(pending):
        heads = [next(iter(queue)) for queue in pending if queue]
        fitting = (
            key
            for key in heads
            if all(key not in queue or next(iter(queue)) == key for queue in pending if queue)
        )
        key = next(fitting, heads[0])
        outputs = [(number, tensor) for number, queue in enumerate(pending) for tensor in queue.pop(key, ())]
        steps.append(Step(outputs[0][1].source, tuple(outputs)))
    return steps


def _by_source(plan: ArtifactPlan) -> dict[Any, list[PlannedTensor]]:
    """Tensors by where their rows are, in the order in which each source comes first."""
    found: dict[Any, list[PlannedTensor]] = {}
    for tensor in plan.tensors:
        key = tuple((id(p.checkpoint), p.name, p.start, p.stop) for p in tensor.source.pieces)
        found.setdefault(key, []).append(tensor)
    return found
