"""Artifacts that are there already, ours or others': one, or all that a folder holds.

However many there are, the source is looked at and sent through its layers once.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qexport.errors import (
    EnvironmentProblem,
    InputError,
    QexportError,
    UsageProblem,
    VerificationError,
)
from qexport.receipt.folder import known_in
from qexport.receipt.state import State, problem, worst
from qexport.receipt.verification import Check, Status, Verdict
from qexport.recipe.choice import ModelChoice
from qexport.run.in_folder import Found, artifacts_in, check_files, is_one_artifact, lost_head, refuse_tower
from qexport.run.measure import measuring
from qexport.run.model import examine
from qexport.verification.memory import fit
from qexport.verification.reference import reference_from_view
from qexport.verification.run import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qexport.families.view import ModelView
    from qexport.receipt.verification import Verification
    from qexport.run.measure import Measure
    from qexport.verification.options import VerifyOptions
    from qexport.verification.reference import Reference


_WAYS_OUT = {
    State.UNCOMPARED: "Name its source with --against MODEL, or take it as it is with --allow-unverified.",
    State.NOT_RUN: "The lines above say why, and what could run it; --allow-unverified takes it as it is.",
}


@dataclass(frozen=True)
class Verified:
    """What came of some artifacts.

    Attributes:
        reports: of those that were judged, each under the name that it has in its folder.
        refused: the others, by name: what was wrong with a file, or kept it from being run.
        again: only what receipts call verified was asked for.
    """

    reports: tuple[Verification, ...]
    refused: tuple[tuple[str, QexportError], ...] = ()
    again: bool = False

    def check(self, *, allow_unverified: bool = False) -> None:
        """Raise what failed; else what was wrong with files; else what was not run, or not compared.

        Args:
            allow_unverified: what nothing here could run, or compare, is good enough.
        """
        failed = [
            f"{each.artifact} failed verification: {each.verdict.removeprefix('failed: ')}"
            for each in self.reports
            if each.failures
        ]
        broken = [(name, error) for name, error in self.refused if isinstance(error, InputError)]
        failed += [_named(name, error.message) for name, error in broken]
        if failed:
            raise VerificationError("; ".join(failed), hint=broken[0][1].hint if broken else None)
        if self.refused:
            error = self.refused[0][1]
            error.message = "; ".join(f"{name} is not verified: {why.message}" for name, why in self.refused)
            raise error
        # Again: what the receipts call compared are these very bytes.
        asked = [each for each in self.reports if not (self.again and each.state is State.UNCOMPARED)]
        kind = problem([each.state for each in asked], allow_unverified=allow_unverified)
        if kind is not None:
            open_ = [each for each in asked if not each.passed]
            named = "; ".join(f"{each.artifact}: {each.verdict}" for each in open_)
            raise kind(f"not verified: {named}", hint=_WAYS_OUT.get(worst(each.state for each in open_)))


def verify_all(
    path: Path,
    *,
    view: ModelView | None,
    options: VerifyOptions,
    say: Callable[[str], None],
    title: Callable[[str], None],
    measure: int = 0,
    again: bool = False,
) -> Verified:
    """Judge an artifact, or by its receipts all that the folder ``path`` holds.

    Args:
        view, measure: as in :func:`verify_artifact`.
        title: told the name of each of several.
        again: only what receipts call verified.

    Raises:
        QexportError: there is nothing to run, or one artifact alone that cannot be judged.
    """
    refuse_tower(path)
    several = not is_one_artifact(path)
    found = artifacts_in(path) if several else [Found(path, path)]
    if again:
        found = [each for each in found if each.proven]
        if not found:
            raise InputError(f"Nothing in {path.name} is called verified by a receipt: nothing was run.")
    if not several:
        report = verify_artifact(path, view=view, options=options, say=say, measure=measure)
        return Verified((report,), again=again)
    reports: list[Verification] = []
    refused: list[tuple[str, QexportError]] = []
    measured = nullcontext() if view is None or not measure else measuring(view, say, tokens=measure)
    with measured as measurer:
        for each in found:
            title(each.name)
            try:
                check_files(each)
                report = verify_artifact(each.path, view=view, options=options, say=say, measure=measurer)
                reports.append(replace(report, artifact=each.name))
            except QexportError as error:
                refused.append((each.name, error))
                say(f"  {error.message}")
    return Verified(tuple(reports), tuple(refused), again)


def _named(name: str, words: str) -> str:
    """What is wrong with a file begins with its name already."""
    return words if words.startswith(name) else f"{name}: {words}"


def view_to_compare(
    model: str,
    revision: str | None,
    *,
    mtp_from: str | None = None,
    mtp_from_revision: str | None = None,
    artifact: Path | None = None,
) -> ModelView:
    """The model that an artifact is compared with: with its MTP head, unless something is wrong with that.

    Args:
        mtp_from: whose head the artifact was given, in place of the model's own: then that is compared with.
        artifact: whose receipt may say that it was given another's, which is not compared with the model's.

    Raises:
        InputError, UsageProblem, EnvironmentProblem: the model cannot be opened, or that head does not fit.
    """
    if mtp_from is not None:
        choice = ModelChoice(model, revision, "graft", mtp_from, mtp_from_revision)
        return examine(choice, download=True).repaired.view()
    headless = ModelChoice(model, revision, mtp="drop")
    if artifact is not None and _grafted(artifact):
        return examine(headless, download=True).repaired.view()
    try:
        return examine(ModelChoice(model, revision), download=True).repaired.view()
    except (InputError, UsageProblem):
        return examine(headless, download=True).repaired.view()


def _grafted(path: Path) -> bool:
    """Whether a receipt says that the head of what lies here is another model's."""
    try:
        known = known_in(path.parent if path.is_file() else path).artifacts
    except InputError:
        return False
    mine = (each for each in known if not path.is_file() or any(f.name == path.name for f in each.files))
    return any(each.source.head == "grafted" for each in mine)


def verify_artifact(
    path: Path,
    *,
    view: ModelView | None,
    options: VerifyOptions,
    say: Callable[[str], None],
    measure: int | Measure | None = 0,
) -> Verification:
    """Judge a GGUF file or a folder of any format.

    Args:
        view: the source; without it nothing can be compared.
        measure: tokens on which the artifact is compared with the source (0: none); or what compares
            others with it, too.
    """
    report = _with_its_head(verify(path, view=view, options=options, progress=say), path)
    if view is None or not measure or report.failures:
        return report
    if not isinstance(measure, int):
        return measure.add_to(report, path)
    with measuring(view, say, tokens=measure) as measured:
        return measured.add_to(report, path)


def _with_its_head(report: Verification, path: Path) -> Verification:
    """A head that its receipt knows and that is gone is a fault of what is here."""
    if not (why := lost_head(path)):
        return report
    lost = Verdict(Check.MTP_LOADS, Status.FAIL, why)
    others = tuple(each for each in report.findings if each.check is not Check.MTP_LOADS)
    return replace(report, findings=(*others, lost))


def shared_reference(view: ModelView, options: VerifyOptions) -> Reference | None:
    """One reference for all files of a model, where it is small enough to stay in memory beside a runtime.

    ``None`` leaves it to each verification to build its own, after the runtime's process is gone.
    """
    if not options.reference or fit(view).dtype != "float32":
        return None
    try:
        return reference_from_view(view, dtype="float32")
    except (EnvironmentProblem, InputError):
        return None  # each verification meets it again, and says in its report why there is no agreement
