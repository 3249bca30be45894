"""A recipe's gates against what was measured of its artifacts.

What was not measured passes no gate. Two things are no failing: acceptance where the model has no MTP head,
and anything about artifacts that cannot be run at all (the repaired checkpoint), but for their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from qexport.pipeline.receipts import measures_of
from qexport.verify.report import Check

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.pipeline.export import Item
    from qexport.recipe.gates import Limits
    from qexport.recipe.recipe import Recipe, Subject

__all__ = ["GateOutcome", "judge_gates", "to_json"]


@dataclass(frozen=True)
class GateOutcome:
    """One gate of one artifact. ``value`` is ``None`` where nothing was measured."""

    artifact: str
    gate: str
    limit: float
    value: float | None
    passed: bool


def judge_gates(
    recipe: Recipe, subject: Subject, items: Sequence[Item], out: Path, *, head: bool
) -> dict[int, tuple[GateOutcome, ...]]:
    """The outcome of every gate, by the place of the item.

    Args:
        items: written and proven.
        out: the folder that holds the artifacts' folders.
        head: whether the model has an MTP head.
    """
    by_folder = {out / recipe.folder(subject, artifact): artifact for artifact in recipe.artifacts}
    judged: dict[int, tuple[GateOutcome, ...]] = {}
    for place, item in enumerate(items):
        mine = by_folder.get(item.folder)
        ladder = [a for a in recipe.artifacts if item.plan.label in a.types and a.types]
        artifact = ladder[0] if item.plan.kind == "gguf" and ladder else mine
        if artifact is not None:
            limits = artifact.gates.of(item.plan.label if artifact.types else None)
            judged[place] = tuple(_judge(limits, item, head=head))
    return judged


def to_json(outcomes: Sequence[GateOutcome]) -> list[dict[str, Any]]:
    """As plain data, for receipts."""
    return [asdict(outcome) for outcome in outcomes]


def _judge(limits: Limits, item: Item, *, head: bool) -> list[GateOutcome]:
    values = _values(item)
    outcomes: list[GateOutcome] = []
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
        outcomes.append(GateOutcome(item.name, each.name, limit, value, kept))
    return outcomes


def _values(item: Item) -> dict[str, float | None]:
    measures: Mapping[str, Any] = {} if item.report is None else measures_of(item.report)
    agreement = None if item.report is None else item.report.finding(Check.AGREEMENT)
    acceptance = measures.get("acceptance")
    if acceptance is None and item.report is not None:
        acceptance = item.report.acceptance
    return {
        "min_agreement": None if agreement is None else agreement.data.get("agreement"),
        "max_mean_kld": (measures.get("kld") or {}).get("mean"),
        "min_same_top1": measures.get("same_top1"),
        "min_acceptance": acceptance,
        "max_size": item.plan.size,
    }
