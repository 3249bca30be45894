"""GGUF end to end: plan every type, write them from one read, prove each, leave a receipt."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.tensors import torch_dtype
from qexport.codecs import warmup
from qexport.errors import EnvironmentProblem
from qexport.export.disk import check_collisions, check_space
from qexport.export.execute import execute
from qexport.export.receipt import write_receipt
from qexport.formats.gguf.importance import plan_imatrix
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.pipeline.calibrate import expected
from qexport.pipeline.receipts import artifact_entries
from qexport.pipeline.verify import shared_reference
from qexport.verify.run import VerifyOptions, verify_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from qexport.doctor.diagnose import Diagnosis
    from qexport.export.execute import Progress
    from qexport.export.sink import WrittenFile
    from qexport.families.view import ModelView
    from qexport.formats.plan import ArtifactPlan
    from qexport.pipeline.calibrate import Collected, Prepared
    from qexport.pipeline.model import ModelChoice
    from qexport.verify.report import Report

__all__ = [
    "GgufJob",
    "GgufResult",
    "check_job",
    "matrix_plan",
    "plan_job",
    "prove_gguf",
    "ready_kernels",
    "uses_matrix",
    "without_matrix",
    "write_gguf",
    "write_matrix",
]


@dataclass(frozen=True)
class GgufJob:
    """What to make of a diagnosed model.

    Attributes:
        types: file types, such as ``Q4_K_M``.
        out: the folder for the files and the receipt.
        verify: how to prove them; ``None`` skips that, and the receipt says so.
        calibration: how to collect the importance matrix, where that is wanted; until it has been,
            ``options.imatrix`` is the one that is expected (:meth:`expecting`).
        facts: how the matrix was collected, for the receipt.
    """

    choice: ModelChoice
    types: tuple[str, ...]
    out: Path
    options: GgufOptions = field(default_factory=GgufOptions)
    verify: VerifyOptions | None = field(default_factory=VerifyOptions)
    threads: int | None = None
    overwrite: bool = False
    calibration: Prepared | None = None
    facts: Mapping[str, Any] | None = None

    def expecting(self, prepared: Prepared, view: ModelView) -> GgufJob:
        """The job with a matrix of the right names and sizes, so that files can be planned to the byte."""
        options = replace(self.options, imatrix=expected(prepared, view))
        return replace(self, calibration=prepared, options=options)

    def having(self, collected: Collected) -> GgufJob:
        """The job with the matrix that was collected."""
        return replace(self, options=replace(self.options, imatrix=collected.matrix), facts=collected.facts)


@dataclass(frozen=True)
class GgufResult:
    """One written artifact; ``report`` is ``None`` where verification was not asked for."""

    plan: ArtifactPlan
    written: tuple[WrittenFile, ...]
    report: Report | None

    @property
    def passed(self) -> bool:
        return self.report is None or self.report.passed


def uses_matrix(plans: Sequence[ArtifactPlan]) -> bool:
    """Whether any of the files has a use for an importance matrix."""
    return any(plan.details["importance_matrix"] for plan in plans)


def plan_job(job: GgufJob, diagnosis: Diagnosis) -> tuple[ArtifactPlan, ...]:
    """The plans of a job. Reads no tensor data."""
    return plan_gguf(diagnosis.repaired.view(), job.types, job.options)


def check_job(job: GgufJob, plans: Sequence[ArtifactPlan]) -> None:
    """Everything that can be known to fail before the first byte: names, room, the runtime.

    Raises:
        UsageProblem, EnvironmentProblem: what is in the way, and the way out.
    """
    every = [*plans, *matrix_plan(job)]
    names = [file.name for plan in every for file in plan.files]
    check_collisions(names, job.out, overwrite=job.overwrite)
    check_space(every, job.out)
    if job.verify is not None and job.verify.llama_server is None and find_spec("xllamacpp") is None:
        raise EnvironmentProblem(
            "the files could not be verified: xllamacpp is not installed",
            hint="pip install 'qexport[llama]', name a build of yours with --llama-server, or --no-verify.",
        )


def without_matrix(job: GgufJob) -> GgufJob:
    """The job for types that have no use for one."""
    return replace(job, calibration=None, options=replace(job.options, imatrix=None))


def matrix_plan(job: GgufJob) -> list[ArtifactPlan]:
    """The matrix as a file of its own, where one is collected: who runs again need not collect again."""
    matrix = job.options.imatrix
    if job.calibration is None or matrix is None:
        return []
    return [plan_imatrix(matrix, matrix.label, job.facts)]


def write_matrix(job: GgufJob, diagnosis: Diagnosis) -> tuple[str, ...]:
    """Write the collected matrix beside the files to come; returns what a user should know about it."""
    (plan,) = matrix_plan(job)
    (written,) = execute([plan], job.out)
    _write_receipt(job, diagnosis, [GgufResult(plan, written, None)])
    return tuple(plan.notes)


def ready_kernels(plans: Sequence[ArtifactPlan], say: Callable[[str], None]) -> None:
    """Compile the encoders that the plans need where no cache has them, saying what took how long."""
    tensors = [tensor for plan in plans for tensor in plan.tensors]

    def announce(ready: warmup.Prepared) -> None:
        if ready.compiled:
            say(
                f"  compiled the {ready.type_name} encoder in {ready.seconds:.1f} s; it is kept for next time"
            )

    warmup.prepare(
        sorted({tensor.encoder.type_name for tensor in tensors}),
        sorted({torch_dtype(tensor.source.dtype) for tensor in tensors}, key=str),
        importance=any(getattr(tensor.encoder, "importance", None) is not None for tensor in tensors),
        announce=announce,
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
    artifacts = [(result.plan, result.written, result.report) for result in results]
    return write_receipt(job.out, artifact_entries(diagnosis, artifacts, _options(job)))


def _options(job: GgufJob) -> dict[str, Any]:
    """What was asked for, without paths: a receipt travels with the files."""
    options = asdict(replace(job.options, imatrix=None))
    matrix = job.options.imatrix
    options["imatrix"] = None
    if matrix is not None:
        options["imatrix"] = {
            "file": matrix.label,
            "sha256": matrix.sha256,
            "datasets": list(matrix.datasets),
            "calibration": None if job.facts is None else dict(job.facts),
        }
    return {"types": list(job.types), "mtp": job.choice.mtp, **options}
