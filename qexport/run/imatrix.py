"""An importance matrix by itself: planned to the byte, collected, written beside its receipt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.evidence.ranks import here
from qexport.formats.gguf.file_name import is_model_name
from qexport.onepass.disk import check_collisions, check_space
from qexport.receipt.store import settle
from qexport.run.matrix import collect, matrix_label, want, write_matrix
from qexport.run.model import fetched, sources_of

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.evidence.options import StreamOptions
    from qexport.formats.plan import ArtifactPlan
    from qexport.onepass.sink import WrittenFile
    from qexport.recipe.choice import ModelChoice
    from qexport.recipe.recipe import Calibration
    from qexport.run.matrix import Matrix, Wanted
    from qexport.run.watcher import Watcher


@dataclass(frozen=True)
class MatrixJob:
    """What is to be collected, with nothing left that could be refused before the pass.

    Attributes:
        expected: like what will be collected, but for its numbers.
    """

    choice: ModelChoice
    diagnosis: Diagnosis
    wanted: Wanted
    expected: ImportanceMatrix
    plan: ArtifactPlan


@dataclass(frozen=True)
class MatrixMade:
    """A matrix, its file, the receipt that has it, and what a user should know."""

    matrix: Matrix
    written: WrittenFile
    receipt: Path
    notes: tuple[str, ...]


def matrix_job(
    choice: ModelChoice, diagnosis: Diagnosis, how: Calibration, stream: StreamOptions, target: Path | None
) -> MatrixJob:
    """Plan a matrix of a diagnosed model, as ``target`` or under the model's name in this folder.

    Raises:
        InputError: the corpus is none, or the file would be one that is read.
        EnvironmentProblem: transformers is missing, or there is no such device.
    """
    view = diagnosis.repaired.view()
    out = target or Path(matrix_label(view))
    wanted = want(how, stream, view, out.parent, out.name)
    expected = wanted.expected(view)
    sources_of(diagnosis, how).refuse(wanted.out, [wanted.name])
    return MatrixJob(choice, diagnosis, wanted, expected.values, expected.plan(wanted.name))


def collect_alone(job: MatrixJob, watcher: Watcher, *, overwrite: bool = False) -> MatrixMade | None:
    """Collect and write it; ``None`` in all but the first of the processes that torchrun starts.

    Raises:
        InputError: damaged weights, or a matrix to merge belongs to another model.
        UsageProblem: the file is there, or there are more processes than chunks.
        EnvironmentProblem: no room.
    """
    wanted, ranks = job.wanted, here()
    if ranks.rank == 0:
        check_collisions([wanted.name], wanted.out, overwrite=overwrite)
        check_space([job.plan], wanted.out)
        settle(wanted.out, watcher.say)
    diagnosis = fetched(job.choice, job.diagnosis)
    collected = collect(wanted, diagnosis.repaired.view(), watcher, ranks)
    if ranks.rank:
        return None
    options = {"mtp": job.choice.mtp, "merged": [path.name for path in wanted.how.merge]}
    written, receipt, notes = write_matrix(wanted, collected, diagnosis, watcher, options=options)
    if is_model_name(written.name):
        taken = f"llama.cpp and the Hub will take {written.name} for a model: end its name in .gguf_file"
        notes = (*notes, taken)
    return MatrixMade(collected, written, receipt, notes)
