"""GGUF end to end: plan every type, write them from one read, prove each, leave a receipt."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qexport.errors import EnvironmentProblem
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

__all__ = ["GgufJob", "GgufResult", "check_job", "plan_job", "prove_gguf", "write_gguf"]


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


def check_job(job: GgufJob, plans: Sequence[ArtifactPlan]) -> None:
    """Everything that can be known to fail before the first byte: names, room, the runtime.

    Raises:
        UsageProblem, EnvironmentProblem: what is in the way, and the way out.
    """
    names = [file.name for plan in plans for file in plan.files]
    check_collisions(names, job.out, overwrite=job.overwrite)
    check_space(plans, job.out)
    if job.verify is not None and job.verify.llama_server is None and find_spec("xllamacpp") is None:
        raise EnvironmentProblem(
            "the files could not be verified: xllamacpp is not installed",
            hint="pip install 'qexport[llama]', name a build of yours with --llama-server, or --no-verify.",
        )


def write_gguf(
    job: GgufJob, diagnosis: Diagnosis, plans: Sequence[ArtifactPlan], progress: Progress | None
) -> list[GgufResult]:
    """The one pass, and a receipt that calls nothing verified yet."""
    written = execute(plans, job.out, threads=job.threads, progress=progress)
    results = [GgufResult(plan, files, None) for plan, files in zip(plans, written, strict=True)]
    _write_receipt(job, diagnosis, results)
    return results


def prove_gguf(
    job: GgufJob, diagnosis: Diagnosis, results: Sequence[GgufResult], say: Callable[[str], None]
) -> tuple[list[GgufResult], Path]:
    """Run every file, unless that was not asked for, and write the verdicts into the receipt."""
    proven = list(results)
    if job.verify is not None:
        view = diagnosis.repaired.view()
        reference = shared_reference(view, job.verify) if len(results) > 1 else None
        for number, result in enumerate(proven):
            path = job.out / result.written[0].name
            report = verify_gguf(path, view=view, options=job.verify, reference=reference, progress=say)
            proven[number] = replace(result, report=report)
    return proven, _write_receipt(job, diagnosis, proven)


def _write_receipt(job: GgufJob, diagnosis: Diagnosis, results: Sequence[GgufResult]) -> Path:
    source = source_entry(diagnosis.subject.checkpoint)
    source["mtp"] = diagnosis.repaired.mtp_origin
    findings = [finding.to_json() for finding in diagnosis.findings]
    entries = [
        artifact_entry(
            result.plan,
            result.written,
            source=source,
            findings=findings,
            options=_options(job),
            verification=result.report.to_json() if result.report is not None else None,
        )
        for result in results
    ]
    return write_receipt(job.out, entries)


def _options(job: GgufJob) -> dict[str, Any]:
    """What was asked for, without paths: a receipt travels with the files."""
    options = asdict(replace(job.options, imatrix=None))
    matrix = job.options.imatrix
    options["imatrix"] = None if matrix is None else {"file": matrix.label, "sha256": matrix.sha256}
    return {"types": list(job.types), "mtp": job.choice.mtp, **options}
