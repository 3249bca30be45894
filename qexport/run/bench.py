"""How fast artifacts are: one, or all that a folder holds; noted in the receipts beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qexport.errors import QexportError, VerificationError
from qexport.onepass.files import in_hub_cache
from qexport.receipt.store import note_bench
from qexport.run.in_folder import artifacts_in, check_file_sizes, is_one_artifact, refuse_tower
from qexport.verification.bench import bench
from qexport.verification.bench_subject import bench_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from qexport.receipt.speeds import Bench
    from qexport.verification.bench import BenchOptions
    from qexport.verification.options import VerifyOptions


@dataclass(frozen=True)
class Timed:
    """One artifact: its figures, or why nothing could be measured.

    Attributes:
        failed: what its MTP head did to it.
        noted: the receipt that has them now, empty where none knows it; ``None`` where none was to, or nobody
            but the client writes.
    """

    name: str
    bench: Bench | None = None
    noted: str | None = None
    failed: str = ""
    error: QexportError | None = None


def bench_all(
    path: Path,
    runtime: VerifyOptions,
    options: BenchOptions,
    *,
    say: Callable[[str], None],
    title: Callable[[str], None],
    note: bool = True,
) -> Iterator[Timed]:
    """Measure an artifact, or each that the folder ``path`` holds, one after the other.

    Args:
        title: told the name of each of several.
        note: whether the receipts beside them take the figures.

    Raises:
        QexportError: there is nothing, or one artifact alone that cannot be measured.
    """
    refuse_tower(path)
    if is_one_artifact(path):
        yield _timed(path, runtime, options, say, note)
        return
    for each in artifacts_in(path):
        title(each.name)
        try:
            check_file_sizes(each)
            yield _timed(each.path, runtime, options, say, note)
        except QexportError as error:
            yield Timed(each.name, error=error)


def check_timed(found: Sequence[Timed]) -> None:
    """Raise what failed; the kind is that of the first."""
    failed = [each for each in found if each.failed]
    errors = [each.error for each in found if each.error is not None]
    if failed or errors:
        words = [f"{each.name} runs without MTP and fails with it: {each.failed}" for each in failed]
        kind = VerificationError if failed else type(errors[0])
        # A runtime that is not there is not there for any.
        said = dict.fromkeys([*words, *(error.message for error in errors)])
        raise kind("; ".join(said), hint=errors[0].hint if errors and len(said) == 1 else None)


def _timed(
    path: Path, runtime: VerifyOptions, options: BenchOptions, say: Callable[[str], None], note: bool
) -> Timed:
    about, engine = bench_subject(path, runtime)
    found = bench(about, engine, options, say)
    failed = found.failures[0].message if found.failures else ""
    timed = Timed(about.path.name, found.bench, failed=failed)
    if not note or in_hub_cache(about.path):
        return timed
    receipt = note_bench(about.path, found.bench)
    return replace(timed, noted=receipt.name if receipt is not None else "")
