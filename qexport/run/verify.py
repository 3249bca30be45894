"""What an artifact is compared with when it is verified on its own, and the reference shared by a ladder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import EnvironmentProblem, InputError, UsageProblem
from qexport.recipe.recipe import ModelChoice
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
    from qexport.verification.options import VerifyOptions
    from qexport.verification.reference import Reference


def view_to_compare(model: str, revision: str | None) -> ModelView:
    """The model that an artifact is compared with: with its MTP head, unless something is wrong with that."""
    try:
        return examine(ModelChoice(model, revision), download=True).repaired.view()
    except (InputError, UsageProblem):
        return examine(ModelChoice(model, revision, mtp="drop"), download=True).repaired.view()


def verify_artifact(
    path: Path,
    *,
    view: ModelView | None,
    options: VerifyOptions,
    say: Callable[[str], None],
    measure: int = 0,
) -> Verification:
    """Judge a GGUF file or a folder of any format.

    Args:
        view: the source; without it nothing can be compared.
        measure: tokens on which the artifact is compared with the source (0: none).
    """
    report = verify(path, view=view, options=options, progress=say)
    if view is None or not measure or report.failures:
        return report
    with measuring(view, say, tokens=measure) as measured:
        return measured.add_to(report, path)


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
