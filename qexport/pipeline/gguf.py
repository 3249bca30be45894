"""GGUF end to end: plan every type, write them from one read, prove each, leave a receipt."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qexport.export.disk import check_collisions, check_space
from qexport.export.execute import execute
from qexport.export.receipt import artifact_entry, source_entry, write_receipt
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.pipeline.verify import shared_reference
from qexport.verify.run import VerifyOptions, verify_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.export.execute import Progress
    from qexport.export.sink import WrittenFile
    from qexport.formats.plan import ArtifactPlan
    from qexport.pipeline.model import ModelChoice
    from qexport.verify.report import Report

__all__ = ["GgufJob", "GgufResult", "finish_gguf", "plan_job", "write_gguf"]


@dataclass(frozen=True)
class GgufJob:
    """What to make of a diagnosed model.

    Attributes:
        types: file types, such as ``Q4_K_M``.
        out: the folder for the files and the receipt.
        verify: how to prove them; ``None`` skips that, and the receipt says so.
    """

    choice: ModelChoice
    types: tuple[str, ...]
    out: Path
    options: GgufOptions = field(default_factory=GgufOptions)
    verify: VerifyOptions | None = field(default_factory=VerifyOptions)
    threads: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class GgufResult:
    """One written artifact; ``report`` is ``None`` where verification was not asked for."""

    plan: ArtifactPlan
    written: tuple[WrittenFile, ...]
    report: Report | None

    @property
    def passed(self) -> bool:
        return self.report is None or self.report.passed


def plan_job(job: GgufJob, diagnosis: Diagnosis) -> tuple[ArtifactPlan, ...]:
    """The plans of a job. Reads no tensor data."""
    return plan_gguf(diagnosis.repaired.view(), job.types, job.options)


def write_gguf(
    job: GgufJob, plans: Sequence[ArtifactPlan], progress: Progress | None
) -> list[tuple[WrittenFile, ...]]:
    """Check room and names, then the one pass."""
    names = [file.name for plan in plans for file in plan.files]
    check_collisions(names, job.out, overwrite=job.overwrite)
    check_space(plans, job.out)
    return execute(plans, job.out, threads=job.threads, progress=progress)


def finish_gguf(
    job: GgufJob,
    diagnosis: Diagnosis,
    plans: Sequence[ArtifactPlan],
    written: Sequence[tuple[WrittenFile, ...]],
    say: Callable[[str], None],
) -> tuple[list[GgufResult], Path]:
    """Prove every file and write the receipt, whatever the verdicts. Returns results and the receipt."""
    view = diagnosis.repaired.view()
    reference = None
    if job.verify is not None and len(plans) > 1:
        reference = shared_reference(view, job.verify)
    results = []
    for plan, files in zip(plans, written, strict=True):
        report = None
        if job.verify is not None:
            path = job.out / files[0].name
            report = verify_gguf(path, view=view, options=job.verify, reference=reference, progress=say)
        results.append(GgufResult(plan, files, report))
    receipt = write_receipt(
        job.out,
        source=_source(diagnosis),
        findings=[finding.to_json() for finding in diagnosis.findings],
        options=_options(job),
        artifacts=[
            artifact_entry(r.plan, r.written, r.report.to_json() if r.report is not None else None)
            for r in results
        ],
    )
    return results, receipt


def _source(diagnosis: Diagnosis) -> dict[str, Any]:
    source = source_entry(diagnosis.subject.checkpoint)
    source["mtp"] = diagnosis.repaired.mtp_origin
    return source


def _options(job: GgufJob) -> dict[str, Any]:
    """What was asked for, without paths: a receipt travels with the files."""
    options = asdict(replace(job.options, imatrix=None))
    del options["imatrix"]
    return {"types": list(job.types), "mtp": job.choice.mtp, **options}
