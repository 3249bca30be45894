"""A second opinion on agreement: the artifact's own numbers, run by transformers.

What rounding makes of a text hangs on the model: rows of 192 suffer more than rows of 4096, weights that were
hardly trained more than trained ones, and a router near a tie sends a token elsewhere after the least of it.
So a healthy artifact can differ from its source by more than any limit that would still find a fault. Then
its answers are scored once more, by the numbers that it holds: a runtime that reads them rightly is as near
to them as its own arithmetic allows, within the limits for 8 bits, or the type's own where those are
stricter. What rounding costs is not judged by this: the divergence says it.

Asked only where every matrix is the source's as far as rounding explains (``weights``), and all that the
artifact holds and says of itself is the source's, too: a damaged artifact agrees with its own damage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.errors import EnvironmentProblem, InputError
from qexport.families.roles import Role
from qexport.formats.opening import open_artifact
from qexport.formats.tolerance import EIGHT_BITS, Tolerance
from qexport.receipt.verification import Status, Verdict
from qexport.verification.memory import SKIPPED_BLOCKS, fit
from qexport.verification.reference import TransformersReference, reference_from_view

if TYPE_CHECKING:
    from qexport.artifacts.description import Description
    from qexport.families.hyper import Hyper
    from qexport.families.view import ModelView

Own = Callable[[], TransformersReference | None]


def own_reference(about: Description, source: ModelView) -> TransformersReference | None:
    """The artifact's language model as it is stored; ``None`` where it does not fit, or is another's."""
    try:
        view = (about.artifact or open_artifact(about.path, like=source)).view()
        if _computed(view.hyper) != _computed(source.hyper) or _names(view) != _names(source):
            return None
        size = fit(view)
        return reference_from_view(view, dtype=size.dtype) if size.ok else None
    except (EnvironmentProblem, InputError):
        return None


def _computed(hyper: Hyper) -> Hyper:
    """What a text becomes by, whatever the config spells and however long a text may be."""
    return replace(hyper, vocab=0, context=0, tied=False, interval=None, text={}, sources={})


def _names(view: ModelView) -> set[str]:
    """An output that is the embedding may be stored or not."""
    return {each.name for each in view if each.block not in SKIPPED_BLOCKS and each.role is not Role.OUTPUT}


def or_by_own_numbers(
    found: Verdict,
    limits: Tolerance,
    own: Own,
    judge: Callable[[TransformersReference, Tolerance], Verdict],
) -> Verdict:
    """The finding; where it failed, the second opinion.

    Args:
        found: on the answers beside the source, by ``limits``.
        own: makes the reference of the artifact's own numbers, or ``None``.
        judge: the same answers beside another reference, by other limits.
    """
    if found.status is not Status.FAIL or (reference := own()) is None:
        return found
    second = judge(reference, _stricter(limits))
    data = {**found.data, "by_own_numbers": dict(second.data)}
    said = second.summary.replace("the source", "the artifact's own numbers")
    if second.status is not Status.PASS:
        return replace(found, summary=f"{found.summary}; {said}", data=data)
    words = f"{said}; beside the source, where rounding makes more of a difference: {found.summary}"
    return Verdict(found.check, Status.PASS, words, data)


def _stricter(limits: Tolerance) -> Tolerance:
    """Nothing is lost but by the runtime's arithmetic, which may round activations to 8 bits."""
    return Tolerance(
        agreement=max(limits.agreement, EIGHT_BITS.agreement),
        near_tie=min(limits.near_tie, EIGHT_BITS.near_tie),
        mean_delta=min(limits.mean_delta, EIGHT_BITS.mean_delta),
        reason="the artifact's own numbers: the runtime's arithmetic, and activations rounded to 8 bits",
    )
