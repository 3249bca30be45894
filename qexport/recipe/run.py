"""One model of a recipe, planned, with one calibration for all artifacts that want it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.evidence.imatrix_file import read_imatrix
from qexport.evidence.options import StreamOptions
from qexport.formats.gguf.options import GgufOptions
from qexport.pipeline import export
from qexport.pipeline.calibrate import CalibrationJob, Prepared, expected, imatrix_name, prepare
from qexport.pipeline.gguf import GgufTarget, matrix_plan, matrix_there, uses_matrix, write_matrix
from qexport.recipe.matrix_in import Matrix
from qexport.recipe.targets import Runtimes, to_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.formats.plan import ArtifactPlan
    from qexport.pipeline.calibrate import Collected
    from qexport.pipeline.export import Item, Target
    from qexport.recipe.recipe import Recipe, Subject
    from qexport.recipe.select import Unit


@dataclass(frozen=True)
class Local:
    """What belongs to this machine and not to the recipe; without ``runtimes`` nothing is proven."""

    out: Path
    runtimes: Runtimes | None
    stream: StreamOptions


@dataclass(frozen=True)
class Ready:
    """A subject's units, planned.

    Attributes:
        targets: with the matrix that is expected, or (:meth:`having`) the one that was collected.
        prepared: the calibration that has to be run first, or ``None``.
        holder: keeps a collected matrix as a file, so that who runs again need not collect it again.
    """

    recipe: Recipe
    subject: Subject
    units: tuple[Unit, ...]
    local: Local
    targets: tuple[Target, ...]
    prepared: Prepared | None = None
    holder: GgufTarget | None = None

    def items(self, diagnosis: Diagnosis) -> list[Item]:
        """Everything that is to be written."""
        return export.plan(self.targets, diagnosis, self.inputs)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file and folder that the recipe names, and itself: those of its other models, too."""
        calibration = self.recipe.calibration
        files = (calibration.corpus, calibration.imatrix) if calibration is not None else ()
        models = [name for each in self.recipe.subjects for name in (each.source.model, each.mtp.base)]
        folders = (Path(name) for name in models if name is not None)
        every = (self.recipe.path, *(file for file in files if file is not None), *folders)
        return tuple(path for path in every if path.exists())

    def beside(self) -> dict[Path, list[ArtifactPlan]]:
        """The matrix as a file, where one is collected."""
        return {} if self.holder is None else {self.holder.out: matrix_plan(self.holder)}

    def there(self, diagnosis: Diagnosis) -> Collected | None:
        """The matrix that an earlier run has collected in the same way from the same weights."""
        return None if self.holder is None else matrix_there(self.holder, diagnosis)

    def having(self, collected: Collected) -> Ready:
        """The same with the matrix that was collected."""
        assert self.holder is not None
        matrix = Matrix(collected.matrix, collected.facts)
        targets = _targets(self.recipe, self.subject, self.units, self.local, matrix)
        return replace(self, targets=targets, holder=self.holder.having(collected))

    def keep(self, diagnosis: Diagnosis, say: Callable[[str], None]) -> tuple[str, ...]:
        """Write the collected matrix; returns what a user should know about it."""
        assert self.holder is not None
        return write_matrix(self.holder, diagnosis, say, self.inputs)


def ready(
    recipe: Recipe, subject: Subject, units: Sequence[Unit], diagnosis: Diagnosis, local: Local
) -> Ready:
    """Plan a subject's units. Reads no weights; a corpus is read and tokenized, so that it can be refused.

    Raises:
        InputError, UsageProblem, EnvironmentProblem: from doctor, formats and calibration.
    """
    view = diagnosis.repaired.view()
    mine = tuple(unit for unit in units if unit.subject == subject.key)
    asked = {unit.artifact for unit in mine}
    wanted = [each for each in recipe.artifacts if each.importance and each.name in asked]
    if not wanted or recipe.calibration is None:
        return Ready(recipe, subject, mine, local, _targets(recipe, subject, mine, local, None))
    if recipe.calibration.imatrix is not None:
        matrix = Matrix(read_imatrix(recipe.calibration.imatrix))
        return Ready(recipe, subject, mine, local, _targets(recipe, subject, mine, local, matrix))
    prepared = prepare(_job(recipe, local), view, imatrix_name(view, subject.source.name))
    values = expected(prepared, view)
    work = Ready(recipe, subject, mine, local, _targets(recipe, subject, mine, local, Matrix(values)))
    folders = any(not each.types for each in wanted)
    if not folders and not uses_matrix([item.plan for item in work.items(diagnosis)]):
        return work
    return replace(work, prepared=prepared, holder=_holder(work, prepared, values))


def _job(recipe: Recipe, local: Local) -> CalibrationJob:
    calibration = recipe.calibration
    assert calibration is not None
    return CalibrationJob(
        corpus=calibration.corpus,
        tokens=calibration.tokens,
        chunk=calibration.chunk,
        seed=calibration.seed,
        stream=replace(local.stream, precision=calibration.precision),
    )


def _holder(work: Ready, prepared: Prepared, values: ImportanceMatrix) -> GgufTarget:
    """Beside the first GGUF files that use it, as `qexport gguf` has it; else in a folder of its own."""
    ladder = next((each for each in work.recipe.artifacts if each.types and each.importance), None)
    name = f"{work.subject.name}-imatrix" if ladder is None else work.recipe.folder(work.subject, ladder)
    return GgufTarget((), work.local.out / name, GgufOptions(imatrix=values), None, prepared)


def _targets(
    recipe: Recipe, subject: Subject, units: Sequence[Unit], local: Local, matrix: Matrix | None
) -> tuple[Target, ...]:
    return tuple(to_targets(recipe, subject, units, local.out, matrix, local.runtimes))
