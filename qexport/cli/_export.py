"""The common end of every command that exports: the pass, the proofs, the table, the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.cli._report import say_plans, show_results
from qexport.errors import VerificationError
from qexport.pipeline import export

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.cli._output import Output
    from qexport.doctor.diagnose import Diagnosis
    from qexport.pipeline.export import Item

__all__ = ["write_and_prove"]


def write_and_prove(
    output: Output, items: Sequence[Item], diagnosis: Diagnosis, *, threads: int | None
) -> list[Item]:
    """Write all items from one read, prove them, show what came out.

    Raises:
        VerificationError: one of them failed; the files stay, and the receipt says so.
    """
    plans = [item.plan for item in items]
    say_plans(output, items)
    export.ready_kernels(plans, output.say)
    with output.progress(sum(plan.size for plan in plans), "writing") as progress:
        written = export.write(items, diagnosis, threads=threads, progress=progress)
    results, receipts = export.prove(written, diagnosis, output.say)
    show_results(output, results, receipts)
    failed = [item.name for item in results if not item.passed]
    if failed:
        raise VerificationError(
            f"{', '.join(failed)} failed verification; {receipts[0].name} says why",
            hint="Do not publish it. `qexport verify FILE --against MODEL` runs the checks again.",
        )
    return results
