"""The repaired checkpoint as one target among others: written from the same read as the formats made of it.

It is the source's own weights, but its config, names and head are repaired: that transformers loads it and
says what the source says is worth seeing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qexport.errors import EnvironmentProblem
from qexport.pipeline.fix import plan_fix
from qexport.verify.options import VerifyOptions
from qexport.verify.run import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan
    from qexport.pipeline.export import Item


@dataclass(frozen=True)
class MergedOptions:
    """There is nothing to choose."""


@dataclass(frozen=True)
class MergedTarget:
    """The folder ``out``; ``verify`` as for other folders."""

    out: Path
    verify: VerifyOptions | None = field(default_factory=VerifyOptions)

    def plans(self, diagnosis: Diagnosis) -> list[tuple[ArtifactPlan, Path]]:
        """One plan."""
        return [(plan_fix(diagnosis), self.out)]

    def options(self) -> dict[str, Any]:
        """None."""
        return {}

    def check_runtime(self) -> None:
        """Raises EnvironmentProblem when transformers is asked for and not there."""
        named = self.verify is None or self.verify.runtime or self.verify.runtime_python
        if not named and find_spec("transformers") is None:
            raise EnvironmentProblem(
                "the checkpoint could not be verified: transformers is not installed",
                hint="pip install 'qexport[reference]', or --no-verify.",
            )

    def foresee(self, plan: ArtifactPlan, diagnosis: Diagnosis) -> str | None:
        """Nothing speaks against a proof."""
        return None

    def prove(self, items: Sequence[Item], diagnosis: Diagnosis, say: Callable[[str], None]) -> list[Item]:
        """What is stored, then what transformers makes of it."""
        if self.verify is None:
            return list(items)
        view = diagnosis.repaired.view()
        report = verify(self.out, view=view, options=self.verify, progress=say)
        return [replace(item, report=report) for item in items]
