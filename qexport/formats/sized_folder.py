"""What folders have in common whose types are chosen for an aim: what their plans are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.assign.assignment import PLAIN, Assignment
from qexport.errors import InputError

if TYPE_CHECKING:
    from qexport.assign.aim import Aimed
    from qexport.formats.plan import ArtifactPlan


def called(plans: Sequence[ArtifactPlan], options: Aimed, label: str) -> tuple[ArtifactPlan, ...]:
    """The plans of a folder with these options, the trunk's under this label and with what is predicted.

    Raises:
        InputError: the types that were chosen quantize nothing.
    """
    trunk, *beside = plans
    given = getattr(options, "types_from", None)
    predicted = given.predicted if isinstance(given, Assignment) else None
    assert trunk.assignment is not None
    if predicted is not None and set(trunk.assignment.types.values()) == {PLAIN}:
        raise InputError(
            f"{options.aim} is enough for the model as it is: nothing would be quantized",
            hint="Ask for less.",
        )
    named = replace(trunk.assignment, label=label, predicted=predicted)
    others = (replace(each, label=each.label.replace(trunk.label, label, 1)) for each in beside)
    return replace(trunk, label=label, assignment=named), *others
