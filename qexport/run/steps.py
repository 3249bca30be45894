"""The steps of one pass over a model: what is there already, checks, writing, proofs, receipts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import torch_dtype
from qexport.codecs import ggml, warmup
from qexport.evidence.store import Kind
from qexport.onepass.disk import check_collisions, check_space, make_folder
from qexport.onepass.execute import execute
from qexport.onepass.files import silent
from qexport.onepass.ledger import Ledger
from qexport.onepass.locks import locked
from qexport.onepass.resume import Resume, numbers_there
from qexport.receipt.plainly import ended
from qexport.receipt.store import read_receipt, settle, write_receipt
from qexport.receipt.verification import REQUIRED_OF_HEADS, Verification
from qexport.run import feedback
from qexport.run.measure import head_report, measuring
from qexport.run.model import sources_of
from qexport.run.receipts import entry_for, entry_of
from qexport.run.verify import shared_reference
from qexport.run.watcher import Phase, Watcher
from qexport.verification.run import verify

if TYPE_CHECKING:
    from qexport.doctor.diagnose import Diagnosis
    from qexport.families.view import ModelView
    from qexport.formats.plan import ArtifactPlan
    from qexport.progress import Progress
    from qexport.run.feedback import FeedbackText
    from qexport.run.target import Item, Target


Prove = Callable[["Target", "Sequence[Item]", "ModelView", Watcher], "list[Item]"]


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
            done.append(item.as_found(there))
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
    if any(tensor.stored.name in ggml.ONLY_GGML for item in items for tensor in item.plan.tensors):
        ggml.find_library()
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
    fed = ((t.stored, torch_dtype(t.source.dtype)) for t in tensors if t.need(Kind.INPUT_PRODUCTS))
    warmup.prepare_feedback(fed, announce=announce)


def write(
    items: Sequence[Item],
    diagnosis: Diagnosis,
    *,
    home: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = silent,
    text: FeedbackText | None = None,
) -> list[Item]:
    """The one pass, and receipts that call nothing verified yet.

    A run that was interrupted (killed, stopped, out of disk) is gone on with when the same items are written
    again.

    Args:
        home: where the ledger lies; the first target's folder by default.
        say: is told what was none of ours and set aside.
        text: that of error feedback and of scales of inputs.
    """
    home = home or _home(items)
    folders = [item.folder for item in items]
    sources = reduce(or_, [item.sources for item in items], sources_of(diagnosis))
    sources.refuse(home)
    for folder in (home, *folders):
        make_folder(folder)
    for folder in dict.fromkeys(folders):
        settle(folder, say)
    with ExitStack() as stack:
        stack.enter_context(locked((home, *folders), say))
        ledger = Ledger(home)
        resume = Resume(ledger, ledger.take(say), _together(items))
        plans = [item.plan for item in items]
        products = None
        if text is not None and (what := feedback.needed(plans)):
            products = stack.enter_context(closing(text.products(diagnosis.repaired.view())))
            say(f"  {what}: {text.ids.size} tokens of {text.facts['corpus']} go along, layer by layer")
        done = execute(
            plans,
            folders,
            threads=threads,
            progress=progress,
            resume=resume,
            say=say,
            sources=sources,
            products=products,
        )
        if products is not None:
            plans = [feedback.told(each, products) for each in plans]
        written = [
            replace(item, plan=each, written=files)
            for item, each, files in zip(items, plans, done, strict=True)
        ]
        _write_receipts(written, diagnosis, say)
        resume.forget()
    return written


def prove(
    items: Sequence[Item],
    diagnosis: Diagnosis,
    watcher: Watcher | None = None,
    *,
    measure: int = 0,
    run: Prove | None = None,
) -> tuple[list[Item], list[Path]]:
    """Run every artifact, unless that was not asked for; the verdicts go into the receipts.

    Args:
        measure: tokens of held-out text on which artifacts are compared with the source (0: none).
        run: instead of running the artifacts of a target in its runtime.
    """
    proven: list[Item] = []
    watcher, view = watcher or Watcher(), diagnosis.repaired.view()
    with (
        watcher.phase(Phase.VERIFYING, len(items)) as progress,
        measuring(view, watcher.detail, tokens=measure) as measured,
    ):
        for target in {id(item.target): item.target for item in items}.values():
            reports: dict[Path, Verification] = {}
            mine = [item for item in items if item.target is target]
            for item in (run or run_target)(target, mine, view, watcher):
                report = item.report
                if report is not None and measure and not report.failures:
                    # A drafter has its trunk's: what is measured is both together.
                    path = item.path if target.format.ladder else target.out
                    headless = item.plan.details.get("mtp_layouts") == ["none"]
                    watcher.stage(item.name, "measuring")
                    known = reports.get(path) or measured.add_to(report, path, headless=headless)
                    reports[path] = known
                    report = head_report(report, known) if report.required == REQUIRED_OF_HEADS else known
                proven.append(replace(item, report=report))
                if report is not None:
                    watcher.proven(item.name, ended(report))
                progress.advance(1)
    sources_of(diagnosis).refuse_changed()  # a verdict against something else is none
    return proven, _write_receipts(proven, diagnosis, watcher.say)


def run_target(target: Target, items: Sequence[Item], view: ModelView, watcher: Watcher) -> list[Item]:
    """The items, which are written, with a report each; without one where that was not asked for.

    Of a folder, what is stored is judged first, then what a runtime makes of it. A drafter is proven when its
    trunk is measured.
    """
    how = target.verify
    if how is None:
        return list(items)
    several = sum(not item.attached for item in items) > 1
    reference = shared_reference(view, how) if target.format.ladder and several else None
    reports: dict[Path, Verification] = {}
    proven: list[Item] = []
    for item in items:
        if item.attached:
            proven.append(item)
            continue
        head = item.plan.kind in target.format.beside
        path = target.out if head else item.path
        if path not in reports:
            watcher.stage(item.name, "running")
            reports[path] = verify(path, view=view, options=how, reference=reference, progress=watcher.detail)
        report = reports[path]
        proven.append(replace(item, report=_of_head(item, report) if head else report))
    return proven


def _of_head(item: Item, trunk: Verification) -> Verification:
    """Of a drafter, which no runtime here can run: a report that is still empty."""
    return Verification(
        artifact=item.folder.name,
        file_type=trunk.file_type,
        size=item.plan.size,
        bits_per_weight=item.plan.bits_per_weight,
        required=REQUIRED_OF_HEADS,
    )


def _write_receipts(items: Sequence[Item], diagnosis: Diagnosis, say: Callable[[str], None]) -> list[Path]:
    receipts: list[Path] = []
    for folder, members in _by_folder(items).items():
        entries = [
            entry_for(
                diagnosis,
                i.plan,
                i.written,
                i.report,
                i.target.chosen(),
                i.fingerprint,
                i.against,
                i.target.asked,
            )
            for i in members
        ]
        receipts.append(write_receipt(folder, entries, say))
    return receipts


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
