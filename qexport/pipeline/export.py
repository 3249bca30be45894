"""Any artifacts of one model, end to end: plan, check, one pass, prove, receipts.

A :class:`Target` is one thing that was asked for: some GGUF types, an MLX folder, an FP8 or an NVFP4 one. It
becomes one or more :class:`Item`, each an artifact with its plan and its folder; all items of all targets are
written from one read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qexport.checkpoint.tensors import torch_dtype
from qexport.codecs import warmup
from qexport.evidence.store import Kind
from qexport.export.disk import check_collisions, check_space, make_folder
from qexport.export.execute import execute
from qexport.export.files import silent
from qexport.export.fingerprint import fingerprint
from qexport.export.ledger import Ledger
from qexport.export.locks import locked
from qexport.export.resume import Resume, numbers_there
from qexport.export.sink import WrittenFile
from qexport.export.sources import Sources
from qexport.pipeline.measure import head_report, measuring
from qexport.pipeline.model import sources_of
from qexport.pipeline.receipts import artifact_entries, entry_of
from qexport.receipt.state import State
from qexport.receipt.store import read_receipt, settle, write_receipt
from qexport.receipt.verification import REQUIRED_OF_HEADS

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.export.execute import Progress
    from qexport.formats.plan import ArtifactPlan
    from qexport.receipt.verification import Report


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

    def foresee(self, plan: ArtifactPlan, diagnosis: Diagnosis) -> str | None:
        """Why nothing here can prove it, and what could; ``None``: something can, or shall not."""
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
    sources: Sources = field(default_factory=Sources, repr=False)
    written: tuple[WrittenFile, ...] = ()
    report: Report | None = None

    @property
    def name(self) -> str:
        """What users know it by: the file, or the folder."""
        return self.plan.files[0].name if self.plan.kind == "gguf" else self.folder.name

    @property
    def path(self) -> Path:
        """What a runtime opens: the (first) file of a GGUF, else the folder."""
        return self.folder / self.plan.files[0].name if self.plan.kind == "gguf" else self.folder

    @property
    def state(self) -> State:
        """How far it is proven; what verification was not asked for has not run."""
        return State.NOT_RUN if self.report is None else self.report.state

    @cached_property
    def fingerprint(self) -> str:
        """What its bytes follow from, as a hash."""
        return fingerprint(self.plan, _without_timings(self.target.options()))


def plan(targets: Sequence[Target], diagnosis: Diagnosis, given: Sequence[Path] = ()) -> list[Item]:
    """Every artifact of every target. Reads no tensor data.

    Args:
        given: files and folders that are read besides the model, its base and what the targets name.

    Raises:
        UsageProblem: one would be written over a source, or into it.
    """
    sources = sources_of(diagnosis, tuple(targets), tuple(given))
    items: list[Item] = []
    for target in targets:
        for made, folder in target.plans(diagnosis):
            sources.refuse(folder, [file.name for file in made.files])
            items.append(Item(target, made, folder, sources))
    return items


def finished(items: Sequence[Item], *, home: Path | None = None) -> tuple[list[Item], list[Item]]:
    """What earlier runs have written already from the same source and options, and what is to be done.

    The finished items hold their files, and the verdict if there is one. A run of just these items that was
    interrupted, if only between two receipts, is gone on with as a whole.
    """
    entry = Ledger(home or _home(items)).read()
    if entry is not None and entry.fingerprint == _together(items):
        return [], list(items)
    done: list[Item] = []
    todo: list[Item] = []
    for item in items:
        there = entry_of(item.folder, item.fingerprint)
        if there is None:
            todo.append(item)
        else:
            files = tuple(WrittenFile(file.name, file.size, file.sha256) for file in there.files)
            done.append(replace(item, written=files, report=there.verification))
    return done, todo


def check(
    items: Sequence[Item],
    *,
    overwrite: bool,
    home: Path | None = None,
    beside: Mapping[Path, Sequence[ArtifactPlan]] | None = None,
) -> None:
    """Everything that can be known to fail before the first byte: names, room, runtimes.

    Args:
        overwrite: files that are there may be replaced. Those of an interrupted run always are.
        home: where the ledger lies; the first target's folder by default.
        beside: what else will be written into which folder (an importance matrix).

    Raises:
        UsageProblem, EnvironmentProblem: what is in the way, and the way out.
    """
    wanted = {folder: [item.plan for item in members] for folder, members in _by_folder(items).items()}
    for folder, plans in (beside or {}).items():
        wanted.setdefault(folder, []).extend(plans)
    mine = numbers_there(home or _home(items)) if items else frozenset()
    for folder, every in wanted.items():
        read_receipt(folder)  # a later version's is refused now, not after the pass
        names = [file.name for each in every for file in each.files]
        check_collisions(names, folder, overwrite=overwrite, mine=mine)
    for disk in _by_disk(wanted):
        check_space([each for folder in disk for each in wanted[folder]], disk[0])
    for target in {id(item.target): item.target for item in items}.values():
        target.check_runtime()


def ready_kernels(plans: Sequence[ArtifactPlan], say: Callable[[str], None]) -> None:
    """Compile the encoders that the plans need where no cache has them, saying what took how long."""

    def announce(ready: warmup.Prepared) -> None:
        if ready.compiled:
            say(
                f"  compiled the {ready.type_name} encoder in {ready.seconds:.1f} s; it is kept for next time"
            )

    tensors = [tensor for each in plans for tensor in each.tensors]
    warmup.prepare_encoders(
        (
            (t.stored, t.need(Kind.INPUT_SQUARES) is not None, torch_dtype(t.source.dtype), t.matrix_shape[1])
            for t in tensors
        ),
        announce=announce,
    )


def write(
    items: Sequence[Item],
    diagnosis: Diagnosis,
    *,
    home: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = silent,
) -> list[Item]:
    """The one pass, and receipts that call nothing verified yet.

    A run that was interrupted (killed, stopped, out of disk) is gone on with when the same items are written
    again.

    Args:
        home: where the ledger lies; the first target's folder by default.
        say: is told what was none of ours and set aside.
    """
    home = home or _home(items)
    folders = [item.folder for item in items]
    sources = reduce(or_, [item.sources for item in items], sources_of(diagnosis))
    sources.refuse(home)
    for folder in (home, *folders):
        make_folder(folder)
    for folder in dict.fromkeys(folders):
        settle(folder, say)
    with locked((home, *folders), say):
        ledger = Ledger(home)
        resume = Resume(ledger, ledger.take(say), _together(items))
        plans = [item.plan for item in items]
        done = execute(
            plans, folders, threads=threads, progress=progress, resume=resume, say=say, sources=sources
        )
        written = [replace(item, written=files) for item, files in zip(items, done, strict=True)]
        _write_receipts(written, diagnosis, say)
        resume.forget()
    return written


def prove(
    items: Sequence[Item], diagnosis: Diagnosis, say: Callable[[str], None], *, measure: int = 0
) -> tuple[list[Item], list[Path]]:
    """Run every artifact, unless that was not asked for; the verdicts go into the receipts.

    Args:
        measure: tokens of held-out text on which artifacts are compared with the source (0: none).
    """
    proven: list[Item] = []
    view = diagnosis.repaired.view()
    with measuring(view, say, tokens=measure) as measured:
        for target in {id(item.target): item.target for item in items}.values():
            reports: dict[Path, Report] = {}
            for item in target.prove([item for item in items if item.target is target], diagnosis, say):
                report = item.report
                if report is not None and measure and not report.failures:
                    # A drafter has its trunk's: what is measured is both together.
                    path = item.path if item.plan.kind == "gguf" else item.target.out
                    headless = item.plan.details.get("mtp_layouts") == ["none"]
                    known = reports.get(path) or measured.add_to(report, path, headless=headless)
                    reports[path] = known
                    report = head_report(report, known) if report.required == REQUIRED_OF_HEADS else known
                proven.append(replace(item, report=report))
    sources_of(diagnosis).refuse_changed()  # a verdict against something else is none
    return proven, _write_receipts(proven, diagnosis, say)


def _write_receipts(items: Sequence[Item], diagnosis: Diagnosis, say: Callable[[str], None]) -> list[Path]:
    receipts: list[Path] = []
    for folder, members in _by_folder(items).items():
        entries = [
            entry
            for item in members
            for entry in artifact_entries(
                diagnosis,
                [(item.plan, item.written, item.report)],
                item.target.options(),
                fingerprint=item.fingerprint,
            )
        ]
        receipts.append(write_receipt(folder, entries, say))
    return receipts


def _without_timings(options: Mapping[str, Any]) -> dict[str, Any]:
    """How long a matrix took to collect changes no byte; its own hash is there."""
    return {
        key: {k: v for k, v in value.items() if k != "calibration"} if isinstance(value, Mapping) else value
        for key, value in options.items()
    }


def _together(items: Sequence[Item]) -> str:
    prints = [(str(item.folder), item.fingerprint) for item in items]
    return hashlib.sha256(json.dumps(prints).encode()).hexdigest()


def _home(items: Sequence[Item]) -> Path:
    return items[0].target.out


def _by_disk(folders: Iterable[Path]) -> list[list[Path]]:
    """Folders of one file system together."""
    disks: dict[int, list[Path]] = {}
    for folder in folders:
        there = folder.absolute()
        while not there.exists() and there != there.parent:
            there = there.parent
        disks.setdefault(there.stat().st_dev, []).append(folder)
    return list(disks.values())


def _by_folder(items: Sequence[Item]) -> dict[Path, list[Item]]:
    folders: dict[Path, list[Item]] = {}
    for item in items:
        folders.setdefault(item.folder, []).append(item)
    return folders
