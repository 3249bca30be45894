"""MLX, FP8 and NVFP4 folders as targets of an export.

What they share: one folder each (MLX a second one beside it for the drafter), proven by what it stores first,
then by a runtime. What differs is the format's own object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.artifacts.layout import Traits
from qexport.errors import EnvironmentProblem
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.registry import format_of
from qexport.receipt.verification import REQUIRED_OF_HEADS, Report
from qexport.verify.choose import has_experts, unjudged
from qexport.verify.options import VerifyOptions
from qexport.verify.run import verify

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.formats.format import Format
    from qexport.formats.plan import ArtifactPlan
    from qexport.pipeline.export import Item


FolderOptions = MlxOptions | Fp8Options | Nvfp4Options

_DRAFTER = "mlx-drafter"


@dataclass(frozen=True)
class FolderTarget:
    """One folder.

    Attributes:
        asked: options of its format, which say the format.
        out: the folder.
        verify: how to prove it; ``None`` skips that, and the receipt says so.
        facts: how the importance matrix was collected, where it was, for the receipt.
    """

    asked: FolderOptions
    out: Path
    verify: VerifyOptions | None = field(default_factory=VerifyOptions)
    facts: Mapping[str, Any] | None = None

    @property
    def format(self) -> Format:
        """By the options."""
        return format_of(self.asked)

    def plans(self, diagnosis: Diagnosis) -> list[tuple[ArtifactPlan, Path]]:
        """The folder's plan, and that of a drafter beside it."""
        return [
            (plan, self.out.with_name(self.out.name + self.format.beside.get(plan.kind, "")))
            for plan in self.format.plan(diagnosis, self.asked, ())
        ]

    def options(self) -> dict[str, Any]:
        """What was asked for, without paths."""
        found: dict[str, Any] = {}
        for each in fields(self.asked):
            value = getattr(self.asked, each.name)
            if each.name == "importance" and value is not None:
                value = self._matrix(value)
            if isinstance(value, Path):
                value = value.name
            found[each.name] = list(value) if isinstance(value, tuple) else value
        return found

    def _matrix(self, matrix: ImportanceMatrix) -> dict[str, Any]:
        return {
            "file": matrix.label,
            "sha256": matrix.sha256,
            "datasets": list(matrix.datasets),
            "calibration": None if self.facts is None else dict(self.facts),
        }

    def check_runtime(self) -> None:
        """Raises EnvironmentProblem when the runtime that proves it here is not installed."""
        proof = self.format.proof
        if self.verify is None or self.verify.runtime or self.verify.runtime_python is not None:
            return
        if find_spec(proof.module) is None:
            raise EnvironmentProblem(
                f"the folder could not be verified: {proof.module} is not installed",
                hint=f"pip install 'qexport[{proof.extra}]', name a Python that has a runtime with "
                "--runtime-python PATH, or --no-verify.",
            )

    def foresee(self, plan: ArtifactPlan, diagnosis: Diagnosis) -> str | None:
        """Why nothing here can prove the folder, known before it is written, and the way to a proof."""
        if self.verify is None or plan.kind == _DRAFTER:
            return None
        packed = (tensor for tensor in plan.tensors if len(tensor.streams) > 1)
        odd = next((each.name for each in packed if any(size % 128 for size in each.shape[-2:])), None)
        traits = Traits(has_experts(diagnosis.repaired.view().text), odd=odd)
        return unjudged(self.format.layout(self.asked), traits, self.verify)

    def prove(self, items: Sequence[Item], diagnosis: Diagnosis, say: Callable[[str], None]) -> list[Item]:
        """What is stored, then what a runtime makes of it. A drafter is proven when its trunk is measured."""
        if self.verify is None:
            return list(items)
        report = verify(self.out, view=diagnosis.repaired.view(), options=self.verify, progress=say)
        return [replace(item, report=_of(item, report)) for item in items]


def _of(item: Item, report: Report) -> Report:
    """The trunk's report; of a drafter, which no runtime here can run, one that is still empty."""
    if item.plan.kind != _DRAFTER:
        return report
    return Report(
        artifact=item.folder.name,
        file_type=report.file_type,
        size=item.plan.size,
        bits_per_weight=item.plan.bits_per_weight,
        required=REQUIRED_OF_HEADS,
    )
