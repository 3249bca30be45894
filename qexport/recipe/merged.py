"""The repaired checkpoint as one target among others: written from the same read as the formats made of it.

It is the source's own weights, so no runtime proves it; the receipt calls it not verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.pipeline.fix import plan_fix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan
    from qexport.pipeline.export import Item

__all__ = ["MergedOptions", "MergedTarget"]


@dataclass(frozen=True)
class MergedOptions:
    """There is nothing to choose."""


@dataclass(frozen=True)
class MergedTarget:
    """The folder ``out``."""

    out: Path

    def plans(self, diagnosis: Diagnosis) -> list[tuple[ArtifactPlan, Path]]:
        """One plan."""
        return [(plan_fix(diagnosis), self.out)]

    def options(self) -> dict[str, Any]:
        """None."""
        return {}

    def check_runtime(self) -> None:
        """No runtime is needed."""

    def prove(self, items: Sequence[Item], diagnosis: Diagnosis, say: Callable[[str], None]) -> list[Item]:
        """The items as they are."""
        return list(items)
