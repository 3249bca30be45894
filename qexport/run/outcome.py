"""How a run ended: artifacts with their verdicts, gates, the report, what was published; is all well?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.errors import GateRefusal, NotBetter, QexportError, Unproven, VerificationError
from qexport.receipt.names import RECEIPT_NAME
from qexport.receipt.state import State, problem, worst
from qexport.run.gates import words

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.publishing.push import Pushed, Rehearsal
    from qexport.receipt.types import Gate
    from qexport.recipe.recipe import RecipeModel
    from qexport.report.write import ReportPaths
    from qexport.run.target import Item


@dataclass(frozen=True)
class Made:
    """All that was made of one model, and how the gates of its artifacts ended."""

    subject: RecipeModel
    items: tuple[Item, ...]
    gates: tuple[Gate, ...]
    diagnosis: Diagnosis = field(repr=False)

    @property
    def folders(self) -> list[Path]:
        """Each once, in order."""
        return list(dict.fromkeys(item.folder for item in self.items))


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        models: one after the other, as the recipe has them.
        report: its files, where one was asked for.
        pushed: what was published, or how it would be.
        refused: repositories that nothing went to, and why.
    """

    models: tuple[Made, ...]
    report: ReportPaths | None = None
    pushed: tuple[Pushed | Rehearsal, ...] = ()
    refused: tuple[tuple[str, QexportError], ...] = ()
    allow_unverified: bool = False

    @property
    def artifacts(self) -> tuple[Item, ...]:
        """Of all models: each with its path, state, report of its verification, and receipt."""
        return tuple(item for made in self.models for item in made.items)

    @property
    def problem(self) -> QexportError | None:
        """What a command would end with: what failed or is not proven, then gates, then publication."""
        return self._unproven() or self._broken_gates() or self._plain() or refusal(self.refused)

    def raise_problem(self) -> None:
        """Raises :attr:`problem`, where there is one: VerificationError, Unproven or GateRefusal."""
        found = self.problem
        if found is not None:
            raise found

    def _unproven(self) -> QexportError | None:
        asked = [
            item
            for item in self.artifacts
            if item.report is not None and (item.state is State.FAILED or item.target.unverified == "refuse")
        ]
        kind = problem([item.state for item in asked], allow_unverified=self.allow_unverified)
        if kind is None:
            return None
        at = worst(item.state for item in asked)
        names = ", ".join(item.name for item in asked if item.state is at)
        if at is State.FAILED:
            return kind(
                f"{names} failed verification; {RECEIPT_NAME} says why",
                hint="Do not publish it. `qexport verify FILE --against MODEL` runs the checks again.",
            )
        return kind(
            f"not verified ({at}): {names}",
            hint=f"{RECEIPT_NAME} says why. Prove it where a runtime runs it and there is memory for the "
            "source, with `qexport verify`, or take it as it is with --allow-unverified.",
        )

    def _broken_gates(self) -> QexportError | None:
        broken = [outcome for made in self.models for outcome in made.gates if not outcome.passed]
        if not broken:
            return None
        return GateRefusal(
            "the recipe's gates were not kept: " + "; ".join(map(words, broken)),
            hint="It is not published. Give these tensors more bits, or change the gate in the recipe.",
        )

    def _plain(self) -> QexportError | None:
        plain = [item for item in self.artifacts if item.instead_of]
        if not plain:
            return None
        names = ", ".join(item.name for item in plain)
        return NotBetter(
            f"{names}: plain, not best: types chosen by sensitivities were no better than these on held-out "
            "text",
            hint="The files are good, and written. Text like the model's own makes the difference: "
            "--imatrix mine.jsonl. Without --best there is no such comparison.",
        )


def refusal(refused: Sequence[tuple[str, QexportError]]) -> QexportError | None:
    """One error for all repositories that were refused."""
    if not refused:
        return None
    failed = any(isinstance(error, VerificationError) for _, error in refused)
    kind = VerificationError if failed else Unproven
    return kind(
        f"{', '.join(repo for repo, _ in refused)}: not published, for the reasons above",
        hint="`qexport push` has ways to publish all the same, marked on the card.",
    )
