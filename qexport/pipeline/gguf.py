"""GGUF files as one target of an export, and the importance matrix that may be collected for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qexport.errors import EnvironmentProblem, QexportError
from qexport.evidence.imatrix_file import read_imatrix
from qexport.export.execute import execute
from qexport.formats.gguf.importance import plan_imatrix
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.pipeline.calibrate import Collected, expected, matrix_key
from qexport.pipeline.model import sources_of
from qexport.pipeline.receipts import artifact_entries, entry_of
from qexport.pipeline.verify import shared_reference
from qexport.receipt.store import write_receipt
from qexport.verify.options import VerifyOptions
from qexport.verify.run import verify

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.families.view import ModelView
    from qexport.formats.plan import ArtifactPlan
    from qexport.pipeline.calibrate import Prepared
    from qexport.pipeline.export import Item


MATRIX_WAITS = 600.0
"""Seconds that a matrix, which may have taken hours, waits for another run in its folder."""


@dataclass(frozen=True)
class GgufTarget:
    """GGUF files of one model.

    Attributes:
        types: file types, such as ``Q4_K_M``.
        out: the folder for the files and the receipt.
        verify: how to prove them; ``None`` skips that, and the receipt says so.
        calibration: how to collect the importance matrix, where that is wanted; until it has been,
            ``asked.imatrix`` is the one that is expected (:meth:`expecting`).
        facts: how the matrix was collected, for the receipt.
    """

    types: tuple[str, ...]
    out: Path
    asked: GgufOptions = field(default_factory=GgufOptions)
    verify: VerifyOptions | None = field(default_factory=VerifyOptions)
    calibration: Prepared | None = None
    facts: Mapping[str, Any] | None = None

    def expecting(self, prepared: Prepared, view: ModelView) -> GgufTarget:
        """The target with a matrix of the right names and sizes, so that files can be planned to the byte."""
        return replace(
            self, calibration=prepared, asked=replace(self.asked, imatrix=expected(prepared, view))
        )

    def having(self, collected: Collected) -> GgufTarget:
        """The target with the matrix that was collected."""
        return replace(self, asked=replace(self.asked, imatrix=collected.matrix), facts=collected.facts)

    def plans(self, diagnosis: Diagnosis) -> list[tuple[ArtifactPlan, Path]]:
        """A plan for each type."""
        return [(plan, self.out) for plan in plan_gguf(diagnosis.repaired.view(), self.types, self.asked)]

    def options(self) -> dict[str, Any]:
        """What was asked for, without paths."""
        options = asdict(replace(self.asked, imatrix=None))
        options["types_from"] = None if self.asked.types_from is None else self.asked.types_from.name
        matrix = self.asked.imatrix
        if matrix is not None:
            options["imatrix"] = {
                "file": matrix.label,
                "sha256": matrix.sha256,
                "datasets": list(matrix.datasets),
                "calibration": None if self.facts is None else dict(self.facts),
            }
        return {"types": list(self.types), **options}

    def check_runtime(self) -> None:
        """Raises EnvironmentProblem when llama.cpp is asked for and not there."""
        if self.verify is not None and self.verify.llama_server is None and find_spec("xllamacpp") is None:
            raise EnvironmentProblem(
                "the files could not be verified: xllamacpp is not installed",
                hint="pip install 'qexport[llama]', name a build of yours with --llama-server, or "
                "--no-verify.",
            )

    def foresee(self, plan: ArtifactPlan, diagnosis: Diagnosis) -> str | None:
        """Nothing speaks against a proof."""
        return None

    def prove(self, items: Sequence[Item], diagnosis: Diagnosis, say: Callable[[str], None]) -> list[Item]:
        """Run every file in llama.cpp."""
        if self.verify is None:
            return list(items)
        view = diagnosis.repaired.view()
        reference = shared_reference(view, self.verify) if len(items) > 1 else None
        proven: list[Item] = []
        for item in items:
            path = item.folder / item.written[0].name
            report = verify(path, view=view, options=self.verify, reference=reference, progress=say)
            proven.append(replace(item, report=report))
        return proven


def uses_matrix(plans: Sequence[ArtifactPlan]) -> bool:
    """Whether any of the files has a use for an importance matrix."""
    return any(plan.details.get("importance_matrix") for plan in plans)


def without_matrix(target: GgufTarget) -> GgufTarget:
    """The target for types that have no use for one."""
    return replace(target, calibration=None, asked=replace(target.asked, imatrix=None))


def matrix_plan(target: GgufTarget) -> list[ArtifactPlan]:
    """The matrix as a file of its own, where one is collected: who runs again need not collect again."""
    matrix = target.asked.imatrix
    if target.calibration is None or matrix is None:
        return []
    return [plan_imatrix(matrix, matrix.label, target.facts)]


def matrix_there(target: GgufTarget, diagnosis: Diagnosis) -> Collected | None:
    """The matrix that an earlier run has collected in the same way from the same weights, if it is there."""
    if target.calibration is None:
        return None
    entry = entry_of(target.out, matrix_key(target.calibration, diagnosis.repaired.view()))
    if entry is None:
        return None
    path = target.out / entry.files[0].name  # an earlier version gave it another name
    try:
        matrix = read_imatrix(path)
    except QexportError:
        return None
    # What the plan adds of itself is no fact of the collecting: with it, finished files would seem others.
    added = plan_imatrix(matrix, path.name).details
    return Collected(matrix, {key: value for key, value in entry.details.items() if key not in added})


def write_matrix(
    target: GgufTarget, diagnosis: Diagnosis, say: Callable[[str], None], given: Sequence[Path] = ()
) -> tuple[str, ...]:
    """Write the collected matrix beside the files to come; returns what a user should know about it.

    Args:
        given: what is read besides the model and what the target names.
    """
    (plan,) = matrix_plan(target)
    (written,) = execute(
        [plan], target.out, sources=sources_of(diagnosis, target, tuple(given)), wait=MATRIX_WAITS
    )
    key = None
    if target.calibration is not None:
        key = matrix_key(target.calibration, diagnosis.repaired.view())
    entries = artifact_entries(diagnosis, [(plan, written, None)], target.options(), fingerprint=key)
    write_receipt(target.out, entries, say)
    return tuple(plan.notes)
