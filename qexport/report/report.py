"""A report as a value: models, their artifacts, gates and their outcome. Everything written comes from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qexport.receipt.typed import as_json
from qexport.report.pairs import Pair, pair_up

if TYPE_CHECKING:
    from qexport.receipt.types import Artifact, Gate
    from qexport.receipt.words import Fact

SCHEMA = 2


@dataclass(frozen=True)
class Model:
    """One source, its artifacts (small before large, format by format) and where all came from.

    Attributes:
        repairs: what was wrong with the source and was put right.
    """

    title: str
    artifacts: tuple[Artifact, ...]
    facts: tuple[Fact, ...] = ()
    repairs: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[Artifact, ...]:
        """The artifacts that charts are about: heads in folders of their own are part of another."""
        return tuple(artifact for artifact in self.artifacts if not artifact.is_drafter)

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "facts": [asdict(fact) for fact in self.facts],
            "repairs": list(self.repairs),
            "artifacts": [{"name": made.name, **as_json(made)} for made in self.artifacts],
        }


@dataclass(frozen=True)
class Report:
    """The first model is what the report is about; the others are what it is compared with.

    Attributes:
        written: the day of the newest artifact, ``YYYY-MM-DD``: the same receipts give the same report.
    """

    models: tuple[Model, ...]
    gates: tuple[Gate, ...] = ()
    written: str = ""

    @property
    def title(self) -> str:
        """The first model's name, and what it stands beside."""
        first, *others = (model.title for model in self.models)
        return f"{first} beside {' and '.join(others)}" if others else first

    @property
    def pairs(self) -> tuple[tuple[Model, tuple[Pair, ...]], ...]:
        """For each model to compare with: its artifacts beside those of the first one."""
        first, *others = self.models
        return tuple((other, pair_up(first.measured, other.measured)) for other in others)

    @property
    def failed_gates(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if not gate.passed)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "title": self.title,
            "written": self.written,
            "models": [model.to_json() for model in self.models],
            "gates": [asdict(gate) for gate in self.gates],
            "comparison": [
                {"with": other.title, "pairs": [pair.to_json() for pair in pairs]}
                for other, pairs in self.pairs
            ],
        }
