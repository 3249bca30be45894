"""A folder of safetensors as one target of an export: MLX, FP8, NVFP4, the repaired checkpoint.

What it writes is not run here, and its receipt says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from qexport.recipe.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan
    from qexport.pipeline.export import Item
    from qexport.verify.run import VerifyOptions

__all__ = ["FolderTarget"]


@dataclass(frozen=True)
class FolderTarget:
    """A folder, and for MLX the drafter's beside it.

    Attributes:
        kind: a key of ``KINDS``.
        asked: of that kind's option class.
        out: the folder.
        verify: how it would be proven.
        matrix: what the receipt says of the importance matrix, where one is used.
    """

    kind: str
    asked: Any
    out: Path
    verify: VerifyOptions | None = None
    matrix: Mapping[str, Any] | None = None

    def plans(self, diagnosis: Diagnosis) -> list[tuple[ArtifactPlan, Path]]:
        """Its plans: the folder, then what stands beside it."""
        make = KINDS[self.kind].plans
        assert make is not None, f"{self.kind} is no folder"
        first, *more = make(diagnosis.repaired, self.asked)
        beside = [(plan, self.out.with_name(f"{self.out.name}-MTP")) for plan in more]
        return [(first, self.out), *beside]

    def options(self) -> dict[str, Any]:
        """What was asked for, without paths."""
        field = KINDS[self.kind].matrix
        if field is None:
            return asdict(self.asked)
        return {**asdict(replace(self.asked, **{field: None})), field: self.matrix}

    def check_runtime(self) -> None:
        """Nothing is needed."""

    def prove(self, items: Sequence[Item], diagnosis: Diagnosis, say: Callable[[str], None]) -> list[Item]:
        """The items as they are."""
        return list(items)
