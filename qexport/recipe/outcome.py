"""A recipe's gates against what was measured of its artifacts.

What was not measured passes no gate. Two things are no failing: acceptance where the model has no MTP head,
and anything about artifacts that cannot be run at all (the repaired checkpoint), but for their size.
Acceptance is that over held-out text: what a runtime accepts over a few prompts gates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from qexport.receipt.measures import Measures
from qexport.receipt.types import Gate

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.pipeline.export import Item
    from qexport.recipe.gates import Limits
    from qexport.recipe.recipe import Artifact, Recipe, Subject


def judge_gates(
    recipe: Recipe, subject: Subject, items: Sequence[Item], out: Path, *, head: bool
) -> dict[int, tuple[Gate, ...]]:
    """The outcome of every gate, by the place of the item.

    Args:
        items: written and proven.
        out: the folder that holds the artifacts' folders.
        head: whether the model has an MTP head.
    """
    judged: dict[int, tuple[Gate, ...]] = {}
    for place, item in enumerate(items):
        artifact = asked_for(recipe, subject, item, out)
        if artifact is not None and item.folder == item.target.out:
            limits = artifact.gates.of(item.plan.label if artifact.types else None)
            judged[place] = tuple(_judge(limits, item, head=head))
    return judged


def asked_for(recipe: Recipe, subject: Subject, item: Item, out: Path) -> Artifact | None:
    """The recipe's entry that an item was made for; a drafter goes with its trunk."""
    mine = [each for each in recipe.artifacts if out / recipe.folder(subject, each) == item.target.out]
    return next((each for each in mine if not each.types or item.plan.label in each.types), None)


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
        kept = value is not None and (value <= limit if each.name.startswith("max_") else value >= limit)
        outcomes.append(Gate(item.name, each.name, limit, value, kept))
    return outcomes


def _values(item: Item) -> dict[str, float | None]:
    found = Measures() if item.report is None else item.report.measures
    return {
        "min_agreement": found.agreement,
        "max_mean_kld": None if found.kld is None else found.kld.mean,
        "min_same_top1": None if found.same_top1 is None else found.same_top1.value,
        "min_acceptance": None if found.acceptance is None else found.acceptance.value,
        "max_size": item.plan.size,
    }
