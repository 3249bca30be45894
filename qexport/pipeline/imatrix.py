"""An importance matrix end to end: checked, collected, written under its name, with a receipt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.export.disk import check_collisions, check_space
from qexport.export.execute import execute
from qexport.formats.gguf.importance import plan_imatrix
from qexport.pipeline.gguf import MATRIX_WAITS
from qexport.pipeline.model import sources_of
from qexport.pipeline.receipts import artifact_entries
from qexport.receipt.store import settle, write_receipt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.export.sink import WrittenFile
    from qexport.pipeline.calibrate import CalibrationJob, Collected
    from qexport.pipeline.model import ModelChoice


@dataclass(frozen=True)
class ImatrixJob:
    """A matrix to collect and the file it goes to."""

    choice: ModelChoice
    target: Path
    calibration: CalibrationJob
    overwrite: bool = False


def check_imatrix(
    job: ImatrixJob,
    diagnosis: Diagnosis,
    expected: ImportanceMatrix,
    say: Callable[[str], None],
    *,
    dry_run: bool,
) -> int:
    """The file's exact size; before a real run also whether it is in nobody's way and there is room.

    Raises:
        UsageProblem, EnvironmentProblem: what is in the way, and the way out.
    """
    sources_of(diagnosis, job.calibration).refuse(job.target.parent, [job.target.name])
    plan = plan_imatrix(expected, job.target.name)
    if not dry_run:
        check_collisions([job.target.name], job.target.parent, overwrite=job.overwrite)
        check_space([plan], job.target.parent)
        settle(job.target.parent, say)
    return plan.size


def write_imatrix(
    job: ImatrixJob, diagnosis: Diagnosis, collected: Collected, say: Callable[[str], None]
) -> tuple[WrittenFile, Path, tuple[str, ...]]:
    """Write the matrix and its receipt; returns the file, the receipt's path and what a user should know."""
    folder = job.target.parent
    plan = plan_imatrix(collected.matrix, job.target.name, collected.facts)
    ((written,),) = execute([plan], folder, sources=sources_of(diagnosis, job.calibration), wait=MATRIX_WAITS)
    options: dict[str, Any] = {
        "mtp": job.choice.mtp,
        "merged": [path.name for path in job.calibration.merge],
    }
    entries = artifact_entries(diagnosis, [(plan, [written], None)], options)
    return written, write_receipt(folder, entries, say), tuple(plan.notes)
