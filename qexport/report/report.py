"""A report as a value: models, their artifacts, gates and their outcome. Everything written comes from it.

A comparison of models is one of models only where everything else is the same: the type, what was calibrated
on what, the text that was measured on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qexport.receipt.typed import as_json

if TYPE_CHECKING:
    from qexport.receipt.state import Lost
    from qexport.receipt.types import Artifact, Gate
    from qexport.receipt.words import Fact

SCHEMA = 2


# Names, sizes of files, and what differs from run to run: none of them changes what weights become. The same
# corpus may be other tokens in another tokenizer, and an MTP head is another model's own or grafted.
_NO_SETTING = frozenset(
    name
    for line in (
        "file file_name model_name quantized_by sha256 seconds tokens_per_second device types datasets",
        "tokens_sha256 mtp split_max_size max_shard max_shard_size",
    )
    for name in line.split()
)
_UNSAID = "one of them does not say how it was made"


@dataclass(frozen=True)
class Pair:
    """The same kind and type of two models.

    Attributes:
        differing: settings that are not the same, in words; empty: matched.
    """

    ours: Artifact
    theirs: Artifact
    differing: tuple[str, ...] = ()

    @property
    def matched(self) -> bool:
        return not self.differing

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.ours.kind,
            "label": self.ours.label,
            "artifact": self.ours.name,
            "other": self.theirs.name,
            "differing": list(self.differing),
        }


def pair_up(ours: Sequence[Artifact], theirs: Sequence[Artifact]) -> tuple[Pair, ...]:
    """Every artifact that both models have, in the order of ``ours``."""
    known = {(row.kind, row.label): row for row in theirs}
    found = ((row, known.get((row.kind, row.label))) for row in ours)
    return tuple(Pair(row, other, tuple(_differences(row, other))) for row, other in found if other)


def _differences(ours: Artifact, theirs: Artifact) -> Iterator[str]:
    if bool(ours.options) != bool(theirs.options):
        yield _UNSAID
        return
    one, other = dict(_flat(ours.options)), dict(_flat(theirs.options))
    for name in [*one, *(name for name in other if name not in one)]:
        if one.get(name) != other.get(name):
            yield f"{name}: {_shown(one.get(name))} and {_shown(other.get(name))}"
    mine, yours = ours.measures.positions, theirs.measures.positions
    if None not in (mine, yours) and mine != yours:
        yield f"measured on {mine} and {yours} positions"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in _NO_SETTING:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)


@dataclass(frozen=True)
class Model:
    """One source, its artifacts (small before large, format by format) and where all came from.

    Attributes:
        repairs: what was wrong with the source and was put right.
        beside: files that artifacts are used with: towers, importance matrices.
        lost: the files of those that are not what receipts say any more.
    """

    title: str
    artifacts: tuple[Artifact, ...]
    facts: tuple[Fact, ...] = ()
    repairs: tuple[str, ...] = ()
    beside: tuple[Artifact, ...] = ()
    lost: tuple[Lost, ...] = ()

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
            "lost_beside": [asdict(each) for each in self.lost],
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
