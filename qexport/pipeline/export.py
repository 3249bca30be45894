"""Any artifacts of one model, end to end: plan, check, one pass, prove, receipts.

A :class:`Target` is one thing that was asked for: some GGUF types, an MLX folder, an FP8 or an NVFP4 one. It
becomes one or more :class:`Item`, each an artifact with its plan and its folder; all items of all targets are
written from one read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qexport.checkpoint.tensors import torch_dtype
from qexport.codecs import warmup
from qexport.export.disk import check_collisions, check_space
from qexport.export.execute import execute
from qexport.export.receipt import write_receipt
from qexport.pipeline.receipts import artifact_entries

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.export.execute import Progress
    from qexport.export.sink import WrittenFile
    from qexport.formats.plan import ArtifactPlan
    from qexport.verify.report import Report

__all__ = ["Item", "Target", "check", "plan", "prove", "ready_kernels", "write"]


class Target(Protocol):
    """One thing that was asked for."""

    @property
    def out(self) -> Path:
        """The folder of its first artifact."""
        ...

    def plans(self, diagnosis: Diagnosis) -> Sequence[tuple[ArtifactPlan, Path]]:
        """Its artifacts and their folders. Reads no tensor data."""
        ...

    def options(self) -> Mapping[str, Any]:
        """What was asked for, without paths: a receipt travels with the files."""
        ...

    def check_runtime(self) -> None:
        """Raises EnvironmentProblem when what is to prove the artifacts is not there."""
        ...

    def prove(self, items: Sequence[Item], diagnosis: Diagnosis, say: Callable[[str], None]) -> list[Item]:
        """The items, which are written, with a report each; without one where that was not asked for."""
        ...


@dataclass(frozen=True)
class Item:
    """One artifact on its way: planned, written (``written``), proven (``report``).

    ``report`` stays ``None`` where verification was not asked for.
    """

    target: Target
    plan: ArtifactPlan
    folder: Path
    written: tuple[WrittenFile, ...] = ()
    report: Report | None = None

    @property
    def name(self) -> str:
        """What users know it by: the file, or the folder."""
        return self.plan.files[0].name if self.plan.kind == "gguf" else self.folder.name

    @property
    def passed(self) -> bool:
        return self.report is None or self.report.passed


def plan(targets: Sequence[Target], diagnosis: Diagnosis) -> list[Item]:
    """Every artifact of every target. Reads no tensor data."""
    return [Item(target, made, folder) for target in targets for made, folder in target.plans(diagnosis)]


def check(
    items: Sequence[Item], *, overwrite: bool, beside: Mapping[Path, Sequence[ArtifactPlan]] | None = None
) -> None:
    """Everything that can be known to fail before the first byte: names, room, runtimes.

    Args:
        beside: what else will be written into which folder (an importance matrix).

    Raises:
        UsageProblem, EnvironmentProblem: what is in the way, and the way out.
    """
    wanted = {folder: [item.plan for item in members] for folder, members in _by_folder(items).items()}
    for folder, plans in (beside or {}).items():
        wanted.setdefault(folder, []).extend(plans)
    for folder, every in wanted.items():
        check_collisions([file.name for each in every for file in each.files], folder, overwrite=overwrite)
    check_space([each for every in wanted.values() for each in every], items[0].folder)
    for target in {id(item.target): item.target for item in items}.values():
        target.check_runtime()


def ready_kernels(plans: Sequence[ArtifactPlan], say: Callable[[str], None]) -> None:
    """Compile the encoders that the plans need where no cache has them, saying what took how long."""

    def announce(ready: warmup.Prepared) -> None:
        if ready.compiled:
            say(
                f"  compiled the {ready.type_name} encoder in {ready.seconds:.1f} s; it is kept for next time"
            )

    tensors = [tensor for each in plans if each.kind == "gguf" for tensor in each.tensors]
    warmup.prepare(
        sorted({tensor.encoder.type_name for tensor in tensors}),
        sorted({torch_dtype(tensor.source.dtype) for tensor in tensors}, key=str),
        importance=any(getattr(tensor.encoder, "importance", None) is not None for tensor in tensors),
        announce=announce,
    )


def write(
    items: Sequence[Item],
    diagnosis: Diagnosis,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Item]:
    """The one pass, and receipts that call nothing verified yet."""
    done = execute(
        [item.plan for item in items],
        [item.folder for item in items],
        threads=threads,
        progress=progress,
    )
    written = [replace(item, written=files) for item, files in zip(items, done, strict=True)]
    _write_receipts(written, diagnosis)
    return written


def prove(
    items: Sequence[Item], diagnosis: Diagnosis, say: Callable[[str], None]
) -> tuple[list[Item], list[Path]]:
    """Run every artifact, unless that was not asked for; the verdicts go into the receipts."""
    proven: list[Item] = []
    for target in {id(item.target): item.target for item in items}.values():
        proven += target.prove([item for item in items if item.target is target], diagnosis, say)
    return proven, _write_receipts(proven, diagnosis)


def _write_receipts(items: Sequence[Item], diagnosis: Diagnosis) -> list[Path]:
    receipts: list[Path] = []
    for folder, members in _by_folder(items).items():
        entries = [
            entry
            for item in members
            for entry in artifact_entries(
                diagnosis, [(item.plan, item.written, item.report)], item.target.options()
            )
        ]
        receipts.append(write_receipt(folder, entries))
    return receipts


def _by_folder(items: Sequence[Item]) -> dict[Path, list[Item]]:
    folders: dict[Path, list[Item]] = {}
    for item in items:
        folders.setdefault(item.folder, []).append(item)
    return folders
