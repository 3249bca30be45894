"""Artifacts of two models side by side, and whether they were made with the same settings.

A comparison of models is one of models only where everything else is the same: the type, what was calibrated
on what, the text that was measured on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qexport.receipt.types import Artifact


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
