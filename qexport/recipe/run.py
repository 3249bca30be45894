"""One model of a recipe, ready to be written: opened, planned, with one calibration for all that want it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qexport.calibrate.imatrix_file import read_imatrix
from qexport.calibrate.options import StreamOptions
from qexport.export.execute import execute
from qexport.export.receipt import write_receipt
from qexport.formats.gguf.importance import plan_imatrix
from qexport.pipeline import export
from qexport.pipeline.calibrate import CalibrationJob, Prepared, expected, imatrix_name, prepare
from qexport.pipeline.gguf import uses_matrix
from qexport.pipeline.receipts import artifact_entries
from qexport.recipe.matrix_in import Matrix
from qexport.recipe.targets import to_targets

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan
    from qexport.pipeline.calibrate import Collected
    from qexport.pipeline.export import Item
    from qexport.recipe.recipe import Recipe, Subject
    from qexport.recipe.select import Unit

__all__ = ["Local", "Ready", "keep_matrix", "ready"]


@dataclass(frozen=True)
class Local:
    """What belongs to this machine and not to the recipe."""

    out: Path
    prove: bool = True
    llama_server: Path | None = None
    stream: StreamOptions | None = None


@dataclass(frozen=True)
class Ready:
    """A subject, planned.

    Attributes:
        items: everything that is to be written, with the matrix that is expected.
        prepared: the calibration that has to be run first, or ``None``.
        matrix_folder: where a collected matrix is kept, so that who runs again need not collect it again.
    """

    recipe: Recipe
    subject: Subject
    units: tuple[Unit, ...]
    local: Local
    diagnosis: Diagnosis
    items: tuple[Item, ...]
    prepared: Prepared | None
    matrix: Matrix | None
    matrix_folder: Path

    @property
    def beside(self) -> list[ArtifactPlan]:
        """The matrix as a file, where one is collected."""
        if self.prepared is None or self.matrix is None:
            return []
        return [plan_imatrix(self.matrix.values, self.matrix.values.label, self.matrix.facts)]

    def having(self, collected: Collected, diagnosis: Diagnosis) -> Ready:
        """The same with the matrix that was collected, and the data at hand."""
        return _planned(replace(self, diagnosis=diagnosis), Matrix(collected.matrix, collected.facts))

    def fetched(self, diagnosis: Diagnosis) -> Ready:
        """The same with the data at hand."""
        return _planned(replace(self, diagnosis=diagnosis), self.matrix)


def ready(
    recipe: Recipe, subject: Subject, units: Sequence[Unit], diagnosis: Diagnosis, local: Local
) -> Ready:
    """Plan a subject's units. Reads no weights; a corpus is read and tokenized, so that it can be refused.

    Raises:
        InputError, UsageProblem, EnvironmentProblem: from doctor, formats and calibration.
    """
    view = diagnosis.repaired.view()
    mine = tuple(unit for unit in units if unit.subject == subject.key)
    wanted = [
        each for each in recipe.artifacts if each.importance and any(u.artifact == each.name for u in mine)
    ]
    prepared, matrix = None, None
    calibration = recipe.calibration
    if wanted and calibration is not None:
        if calibration.imatrix is not None:
            matrix = Matrix(read_imatrix(calibration.imatrix))
        else:
            job = CalibrationJob(
                corpus=calibration.corpus,
                tokens=calibration.tokens,
                chunk=calibration.chunk,
                seed=calibration.seed,
                stream=replace(local.stream or StreamOptions(), precision=calibration.precision),
            )
            prepared = prepare(job, view, imatrix_name(view, subject.source.name))
            matrix = Matrix(expected(prepared, view))
    ladders = [each for each in wanted if each.types]
    folder = recipe.folder(subject, ladders[0]) if ladders else f"{subject.name}-imatrix"
    made = Ready(recipe, subject, mine, local, diagnosis, (), prepared, matrix, local.out / folder)
    made = _planned(made, matrix)
    weighted = any(not each.types for each in wanted) or uses_matrix([item.plan for item in made.items])
    return made if weighted else replace(made, prepared=None)


def keep_matrix(work: Ready) -> tuple[str, ...]:
    """Write the collected matrix beside the files to come; returns what a user should know about it."""
    (plan,) = work.beside
    (written,) = execute([plan], work.matrix_folder)
    assert work.matrix is not None
    entries = artifact_entries(work.diagnosis, [(plan, written, None)], {"imatrix": work.matrix.described()})
    write_receipt(work.matrix_folder, entries)
    return tuple(plan.notes)


def _planned(work: Ready, matrix: Matrix | None) -> Ready:
    targets = to_targets(
        work.recipe,
        work.subject,
        work.units,
        work.local.out,
        matrix,
        prove=work.local.prove,
        llama_server=work.local.llama_server,
    )
    return replace(work, items=tuple(export.plan(targets, work.diagnosis)), matrix=matrix)
