"""The repaired checkpoint, end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.export.disk import check_collisions, check_space
from qexport.export.execute import execute
from qexport.formats.gguf.file_name import model_stem
from qexport.formats.merged.plan import plan_merged
from qexport.pipeline.model import sources_of
from qexport.pipeline.receipts import artifact_entries
from qexport.receipt.store import settle, write_receipt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.export.execute import Progress
    from qexport.export.sink import WrittenFile
    from qexport.formats.plan import ArtifactPlan


def fixed_name(diagnosis: Diagnosis) -> str:
    """The folder that ``fix`` writes to when it is not told."""
    return f"{model_stem(diagnosis.subject.checkpoint.label)}-fixed"


def plan_fix(diagnosis: Diagnosis) -> ArtifactPlan:
    """The plan of the repaired checkpoint. Raises InputError where something needs a decision first."""
    return plan_merged(diagnosis.repaired, findings=diagnosis.findings)


def write_fix(
    diagnosis: Diagnosis,
    plan: ArtifactPlan,
    folder: Path,
    *,
    threads: int | None,
    overwrite: bool,
    progress: Progress | None,
    say: Callable[[str], None],
) -> tuple[tuple[WrittenFile, ...], Path]:
    """Write it, and a receipt; returns the files and the receipt's path."""
    sources = sources_of(diagnosis)
    sources.refuse(folder, [file.name for file in plan.files])
    check_collisions([file.name for file in plan.files], folder, overwrite=overwrite)
    check_space([plan], folder)
    settle(folder, say)
    (written,) = execute([plan], folder, threads=threads, progress=progress, say=say, sources=sources)
    return written, write_receipt(folder, artifact_entries(diagnosis, [(plan, written, None)], {}), say)
