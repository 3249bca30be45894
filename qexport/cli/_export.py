"""The common end of every command that exports: the pass, the proofs, the table, the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.cli._report import say_plans, show_results
from qexport.pipeline import export
from qexport.receipt.names import RECEIPT_NAME
from qexport.receipt.state import State, problem, worst

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from qexport.cli._output import Output
    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan
    from qexport.pipeline.export import Item, Target


def check_items(
    targets: Sequence[Target],
    diagnosis: Diagnosis,
    *,
    overwrite: bool,
    home: Path | None = None,
    beside: Mapping[Path, Sequence[ArtifactPlan]] | None = None,
    given: Sequence[Path] = (),
) -> None:
    """What can be known to fail before anything is downloaded or collected."""
    _, todo = _settled(export.plan(targets, diagnosis, given), home, overwrite=overwrite)
    if todo:
        export.check(todo, overwrite=overwrite, home=home, beside=beside)


def write_and_prove(
    output: Output,
    items: Sequence[Item],
    diagnosis: Diagnosis,
    *,
    threads: int | None,
    overwrite: bool,
    measure: int = 0,
    home: Path | None = None,
    allow_unverified: bool = False,
) -> list[Item]:
    """Write from one read what is not there yet, prove what is not proven, show what came out.

    Args:
        measure: tokens of held-out text on which artifacts are compared with the source (0: none).
        home: where the ledger lies; the first target's folder by default.
        allow_unverified: what nothing here could run, or compare, is good enough.

    Raises:
        VerificationError: one of them failed; the files stay, and the receipt says so.
        Unproven: nothing is wrong with them, and one is not proven.
    """
    results = write_and_judge(
        output, items, diagnosis, threads=threads, overwrite=overwrite, measure=measure, home=home
    )
    raise_unproven(results, allow_unverified=allow_unverified)
    return results


def write_and_judge(
    output: Output,
    items: Sequence[Item],
    diagnosis: Diagnosis,
    *,
    threads: int | None,
    overwrite: bool,
    measure: int = 0,
    home: Path | None = None,
) -> list[Item]:
    """As :func:`write_and_prove`; what failed is said and returned like the rest, in the order given."""
    done, todo = _settled(items, home, overwrite=overwrite)
    for item in done:
        verdict = "not verified yet" if item.report is None else item.report.verdict
        output.say(f"{item.name} is there, from the same source and options ({verdict})")
    if todo:
        plans = [item.plan for item in todo]
        export.check(todo, overwrite=overwrite, home=home)
        for item in todo:
            if (words := item.target.foresee(item.plan, diagnosis)) is not None:
                output.say(f"{item.name}: nothing here can prove it ({words})")
        say_plans(output, todo)
        export.ready_kernels(plans, output.say)
        with output.progress(sum(plan.size for plan in plans), "writing") as progress:
            todo = export.write(
                todo, diagnosis, home=home, threads=threads, progress=progress, say=output.say
            )
    unproven = [*(item for item in done if not _settled_state(item)), *todo]
    proven, receipts = export.prove(unproven, diagnosis, output.say, measure=measure)
    results = [*(item for item in done if _settled_state(item)), *proven]
    order = [(item.folder, item.plan.label) for item in items]
    results.sort(key=lambda item: order.index((item.folder, item.plan.label)))
    show_results(output, results, receipts or [items[0].folder / RECEIPT_NAME])
    return results


def raise_unproven(results: Sequence[Item], *, allow_unverified: bool) -> None:
    """Raises what :func:`~qexport.receipt.state.problem` says of the artifacts that were to be verified."""
    asked = [item for item in results if item.report is not None]
    kind = problem([item.state for item in asked], allow_unverified=allow_unverified)
    if kind is None:
        return
    at = worst(item.state for item in asked)
    names = ", ".join(item.name for item in asked if item.state is at)
    if at is State.FAILED:
        raise kind(
            f"{names} failed verification; {RECEIPT_NAME} says why",
            hint="Do not publish it. `qexport verify FILE --against MODEL` runs the checks again.",
        )
    raise kind(
        f"not verified ({at}): {names}",
        hint=f"{RECEIPT_NAME} says why. Prove it where a runtime runs it and there is memory for the source, "
        "with `qexport verify`, or take it as it is with --allow-unverified.",
    )


def _settled_state(item: Item) -> bool:
    """Whether its verdict stands: what could not be run or compared may be by now."""
    return item.report is not None and item.state in (State.PASSED, State.FAILED)


def _settled(items: Sequence[Item], home: Path | None, *, overwrite: bool) -> tuple[list[Item], list[Item]]:
    return ([], list(items)) if overwrite else export.finished(items, home=home)
