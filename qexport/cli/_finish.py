"""The end of ``qexport run``: gates, the report, publication."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.cli._push import Refused, push_folders
from qexport.errors import GateRefusal
from qexport.receipt.state import State
from qexport.receipt.store import note_gates
from qexport.recipe.outcome import asked_for, judge_gates
from qexport.recipe.publication import pushes
from qexport.report.write import write_report

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qexport.cli._output import Output
    from qexport.pipeline.export import Item
    from qexport.receipt.types import Gate
    from qexport.recipe.recipe import Recipe
    from qexport.recipe.run import Ready


@dataclass(frozen=True)
class Made:
    """All that was made of one model, and how the recipe's gates ended."""

    work: Ready
    items: tuple[Item, ...]
    outcomes: tuple[Gate, ...]

    @property
    def folders(self) -> list[Path]:
        """Each once, in order."""
        return list(dict.fromkeys(item.folder for item in self.items))

    @property
    def demanding(self) -> list[Item]:
        """What the recipe does not take unverified."""
        work, out = self.work, self.work.local.out
        made_for = ((item, asked_for(work.recipe, work.subject, item, out)) for item in self.items)
        return [
            item
            for item, artifact in made_for
            if item.state is State.FAILED or artifact is None or artifact.unverified == "refuse"
        ]


def note_outcomes(work: Ready, items: Sequence[Item], *, head: bool) -> Made:
    """Judge the gates and note in each receipt how they ended."""
    judged = judge_gates(work.recipe, work.subject, items, work.local.out, head=head)
    for place, outcomes in judged.items():
        if outcomes:
            note_gates(items[place].path, outcomes)
    every = tuple(outcome for outcomes in judged.values() for outcome in outcomes)
    return Made(work, tuple(items), every)


def finish(output: Output, recipe: Recipe, made: Sequence[Made], *, pushing: str | None) -> list[Refused]:
    """Say what gates were not kept, write the report, and publish if that was asked for.

    Args:
        pushing: ``push``, ``rehearse`` or nothing.

    Returns:
        The repositories that were refused; why has been said. The others are not held up by them.
    """
    for outcome in (outcome for each in made for outcome in each.outcomes if not outcome.passed):
        output.say(f"gate not kept: {_words(outcome)}")
    if not made:
        return []
    main = [each for each in made if each.work.subject.key == "model"] or [made[0]]
    base = [each for each in made if each not in main]
    out = made[0].work.local.out
    paths = write_report(
        [folder for each in main for folder in each.folders],
        out,
        gates=[outcome for each in made for outcome in each.outcomes],
        compare=[folder for each in base for folder in each.folders],
    )
    output.text(f"Report: {paths.html}")
    if pushing is None:
        return []
    units = [unit for each in made for unit in each.work.units]
    return push_folders(output, pushes(recipe, units, out), dry_run=pushing == "rehearse")


def raise_gates(made: Sequence[Made]) -> None:
    """Raises GateRefusal where a gate was not kept."""
    broken = [outcome for each in made for outcome in each.outcomes if not outcome.passed]
    if broken:
        raise GateRefusal(
            "the recipe's gates were not kept: " + "; ".join(_words(outcome) for outcome in broken),
            hint="It is not published. Give these tensors more bits, or change the gate in the recipe.",
        )


def _words(outcome: Gate) -> str:
    found = "nothing was measured" if outcome.value is None else f"{outcome.value:.6g}"
    return f"{outcome.artifact} {outcome.gate} {outcome.limit:g}: {found}"
