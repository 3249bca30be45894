"""A recipe's gates against what was measured of its artifacts.

What was not measured passes no gate. Two things are no failing: acceptance where the model has no MTP head,
and anything about artifacts that cannot be run at all (the repaired checkpoint), but for their size.
Acceptance is that over held-out text: what a runtime accepts over a few prompts gates nothing. Nor is it
known how good a prediction was where none was made: that takes an importance matrix with sensitivities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from qexport.receipt.measures import Measures
from qexport.receipt.store import note_gates
from qexport.receipt.types import Gate

if TYPE_CHECKING:
    from qexport.assign.assignment import Assignment
    from qexport.receipt.measures import Kld
    from qexport.recipe.gates import Limits
    from qexport.run.target import Item


def judge_gates(items: Sequence[Item], *, head: bool) -> list[Gate]:
    """The outcome of every gate of these artifacts, which are written and proven; their receipts note it.

    Args:
        head: whether the model has an MTP head.
    """
    every: list[Gate] = []
    for item in items:
        if item.folder == item.target.out and not item.attached:  # a drafter goes with its trunk
            asked = getattr(item.target.options, "like", None) or item.plan.label
            limits = item.target.gates.of(asked if item.target.format.ladder else None)
            found = _judge(limits, item, head=head)
            if found:
                note_gates(item.path, found)
            every += found
    return every


def words(outcome: Gate) -> str:
    """A gate and what was found, in a line."""
    found = "nothing was measured" if outcome.value is None else f"{outcome.value:.6g}"
    return f"{outcome.artifact} {outcome.gate} {outcome.limit:g}: {found}"


def _judge(limits: Limits, item: Item, *, head: bool) -> list[Gate]:
    values = _values(item)
    outcomes: list[Gate] = []
    for each in fields(limits):
        limit = getattr(limits, each.name)
        excused = (each.name == "min_acceptance" and not head) or (
            item.plan.kind == "merged" and each.name != "max_size"
        )
        if limit is None or excused:
            continue
        value = values.get(each.name)
        # Written so that NaN fails.
        kept = value is not None and (value >= limit if each.name.startswith("min_") else value <= limit)
        outcomes.append(Gate(item.name, each.name, limit, value, kept))
    return outcomes


def _values(item: Item) -> dict[str, float | None]:
    found = Measures() if item.report is None else item.report.measures
    return {
        "min_agreement": found.agreement,
        "max_mean_kld": None if found.kld is None else found.kld.mean,
        "min_same_top1": None if found.same_top1 is None else found.same_top1.value,
        "min_acceptance": None if found.acceptance is None else found.acceptance.value,
        "predicted_ratio": _off(found.kld, item.plan.assignment),
        "max_size": item.plan.size,
    }


def _off(measured: Kld | None, chosen: Assignment | None) -> float | None:
    """The factor between the divergence that was measured and that which was predicted, at least 1."""
    if measured is None or chosen is None or chosen.predicted is None:
        return None
    less, more = sorted((measured.mean, chosen.predicted.kld))
    return more / less if less > 0 else math.inf
