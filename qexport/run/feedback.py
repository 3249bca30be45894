"""The text that is sent through a model while its files are written: for error feedback, scales of inputs.

It is that of the importance matrix, or one of its own. A matrix that is ready has forgotten its text, so one
has to be named then. Scales of inputs do without a matrix: their text is the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qexport.codecs.feedback import DAMPING
from qexport.errors import UsageProblem
from qexport.evidence.store import Kind
from qexport.onepass.needs import INPUTS
from qexport.receipt.largest_inputs import shown_inputs
from qexport.receipt.names import LARGEST_INPUTS
from qexport.run.matrix import chunk_facts, chunks_of, corpus_of
from qexport.sizes import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from qexport.evidence.options import StreamOptions
    from qexport.evidence.products import InputProducts
    from qexport.families.view import ModelView
    from qexport.formats.plan import ArtifactPlan
    from qexport.recipe.recipe import AskedArtifact, Calibration
    from qexport.run.matrix import Wanted


@dataclass(frozen=True)
class FeedbackText:
    """Tokens, how they are sent, and what receipts say of it."""

    ids: np.ndarray = field(repr=False)
    stream: StreamOptions
    facts: Mapping[str, Any]

    def products(self, view: ModelView) -> InputProducts:
        """The pass that goes along with the writing."""
        from qexport.evidence.products import InputProducts  # brings torch

        return InputProducts(view, self.ids, self.stream)


def uses_feedback(options: Any) -> bool:
    """Whether options of a format ask for it."""
    return bool(getattr(options, "feedback", False))


def uses_input_scales(options: Any) -> bool:
    """Whether options of a format ask for scales of inputs."""
    return bool(getattr(options, "input_scales", False))


def refuse_forgotten(how: Calibration | None, artifact: AskedArtifact) -> None:
    """Raise UsageProblem where scales of inputs would have to come of a matrix that is ready."""
    if how is not None and how.imatrix is not None and how.feedback_text is None:
        raise UsageProblem(
            f"{artifact.name}: scales of inputs need a text, and {how.imatrix.name} holds sums of squares, "
            "which do not say how large one input was",
            hint="Name the text beside the matrix: --corpus FILE (in a recipe calibration: "
            "{feedback_text: FILE}).",
        )


def refuse_unread(how: Calibration | None, artifact: AskedArtifact) -> None:
    """Raise UsageProblem where there is neither importance to search scales by, nor a text."""
    if how is None or not artifact.importance:
        raise UsageProblem(
            f"{artifact.name}: error feedback goes with importance, and there is none",
            hint="Give a corpus (--imatrix mine.jsonl; in a recipe calibration: {corpus: mine.jsonl}), or a "
            "matrix and --feedback-text.",
        )
    if how.imatrix is not None and how.feedback_text is None:
        raise UsageProblem(
            f"{artifact.name}: error feedback needs a text, and {how.imatrix.name} holds only what was "
            "collected from one",
            hint="Name it with --feedback-text FILE (in a recipe calibration: {feedback_text: FILE}), best "
            "that of the matrix; or give the corpus itself instead of the matrix.",
        )


def feedback_text(
    how: Calibration, stream: StreamOptions, view: ModelView, wanted: Wanted | None
) -> FeedbackText:
    """The text in the model's tokens; that of a matrix to be collected is there already.

    Raises:
        InputError: it is empty, too short, not text.
    """
    if how.feedback_text is None and wanted is not None:
        chunks = wanted.chunks
    else:
        how = replace(how, corpus=how.feedback_text or how.corpus, tokens=how.feedback_tokens)
        chunks = chunks_of(how, view, corpus_of(how))
    enough = max(1, how.feedback_tokens // chunks.size)
    chunks = replace(chunks, ids=chunks.ids[:enough])
    facts = {**chunk_facts(chunks), "damping": DAMPING, "precision": how.precision, "device": stream.device}
    return FeedbackText(chunks.ids, replace(stream, precision=how.precision), facts)


def needed(plans: Sequence[ArtifactPlan]) -> str:
    """What the text is sent along for, in words; empty: for nothing."""
    words = {"error feedback": (Kind.INPUT_PRODUCTS,), "scales of inputs": INPUTS}
    needs = {need.kind for each in plans for tensor in each.tensors for need in tensor.needs}
    return " and ".join(word for word, kinds in words.items() if not needs.isdisjoint(kinds))


def told(plan: ArtifactPlan, products: InputProducts) -> ArtifactPlan:
    """The plan of what was written, with what was found of inputs on the way."""
    return _fed(_scaled(plan, products), products)


def _scaled(plan: ArtifactPlan, products: InputProducts) -> ArtifactPlan:
    """With the largest magnitude of each tensor's inputs.

    A run that was gone on with behind its last layer has not measured again: then there is no record.
    """
    wanted = [need for tensor in plan.tensors for need in tensor.needs if need.kind in INPUTS]
    found = {need.of[0]: products.measured(need.kind).get(need.of[0]) for need in wanted}
    shown = {name: shown_inputs(each) for name, each in found.items() if each is not None}
    if not found or len(shown) < len(found):
        return plan
    return replace(plan, details={**plan.details, LARGEST_INPUTS: shown})


def _fed(plan: ArtifactPlan, products: InputProducts) -> ArtifactPlan:
    """With those matrices that were left plain: too few tokens reached them."""
    fed = [need.of[0] for tensor in plan.tensors if (need := tensor.need(Kind.INPUT_PRODUCTS))]
    if not fed:
        return plan
    left = products.left_out
    few = {name: left[name] for name in fed if name in left}
    details = {"tensors": len(fed), "floor": products.floor, "left_plain": few}
    notes = list(plan.notes)
    if few:
        missed, every = (sum(counts) for counts in zip(*few.values(), strict=True))
        notes.append(
            f"{missed} of {every} matrices in {counted(len(few), 'tensor')} saw fewer than "
            f"{products.floor:g} tokens a "
            "column and are rounded without error feedback"
        )
    return replace(plan, notes=tuple(notes), details={**plan.details, "feedback": details})
