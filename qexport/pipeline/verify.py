"""What an artifact is compared with when it is verified on its own, and the reference shared by a ladder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import EnvironmentProblem, InputError
from qexport.pipeline.model import ModelChoice, examine
from qexport.verify.memory import fit
from qexport.verify.reference import reference_from_view

if TYPE_CHECKING:
    from qexport.families.view import ModelView
    from qexport.verify.reference import Reference
    from qexport.verify.run import VerifyOptions

__all__ = ["shared_reference", "view_to_compare"]


def view_to_compare(model: str, revision: str | None) -> ModelView:
    """The model that an artifact is compared with. Its MTP head plays no part in that, so it is left out."""
    return examine(ModelChoice(model, revision, mtp="drop"), download=True).repaired.view()


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
