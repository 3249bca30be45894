"""Sentences that cards and reports share: where artifacts came from, and what figures mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.receipt.safe_text import PLAIN
from qexport.receipt.text import nats, percent, with_error
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qexport.receipt.safe_text import Markup
    from qexport.receipt.types import Artifact


WAS_RUN = (
    "was loaded and run after it was written, and what came out was judged: every number finite, the text "
    "sane, tokens and probabilities those of the source. What was not run, or ran and was not compared with "
    "the source, has neither passed nor failed."
)
_GATES = {
    "min_agreement": "agreement with the source, at least",
    "max_mean_kld": "mean KL divergence, at most",
    "min_same_top1": "same top-1, at least",
    "min_acceptance": "MTP acceptance, at least",
    "predicted_ratio": "measured KL divergence by prediction, within a factor of",
    "max_size": "size, at most",
}


@dataclass(frozen=True)
class Fact:
    """A line of provenance, such as ``Source`` and where it is."""

    what: str
    text: str


def facts(artifacts: Sequence[Artifact], markup: Markup = PLAIN) -> tuple[Fact, ...]:
    """Source, MTP head, calibration, tool; what all artifacts share is said once."""
    return tuple(
        Fact(what, text)
        for what, of in _FACTS
        for text in dict.fromkeys(filter(None, (of(artifact, markup) for artifact in artifacts)))
    )


def repairs(artifacts: Sequence[Artifact], markup: Markup = PLAIN) -> tuple[str, ...]:
    """What the doctor repaired in the source, each once."""
    found = (finding for artifact in artifacts for finding in artifact.repairs)
    return tuple(dict.fromkeys(f"{markup.text(each.what)} ({markup.name(each.id)})" for each in found))


def _source(artifact: Artifact, markup: Markup) -> str:
    found = artifact.source
    if not found.label:
        return ""
    weighs = f", {size_text(found.weight_bytes)} of weights" if found.weight_bytes else ""
    if found.hub_id and found.revision:
        where = f"on the Hugging Face Hub, commit {markup.name(found.revision)}"
        return f"{markup.link(found.hub_id)} {where}{weighs}"
    return f"{markup.name(found.label)}, a local checkpoint{weighs}"


def _head(artifact: Artifact, markup: Markup) -> str:
    found = artifact.source
    if found.tuned is not None:
        told = found.tuned
        how = "drawn from it" if told.drafts == "sampling" else "its first choices"
        return (
            f"head re-tuned: from that of {markup.name(told.base)} to this model. "
            f"{with_error(told.before)} tokens per verification before, {with_error(told.after)} after, on "
            f"documents that it was not trained on ({told.n_max} drafts, {how})"
        )
    if found.head == "grafted":
        return (
            f"grafted from {markup.name(found.base)}, bit for bit, since the source had lost its own. It was "
            "not trained further on this model, which is why acceptance is measured."
        )
    return {"own": "the source's own", "dropped": "dropped on request"}.get(found.head, "none")


def _tower(artifact: Artifact, markup: Markup) -> str:
    """What is worth a word: a tower that is not the source's own."""
    found = artifact.source
    if not found.tower_base:
        return "dropped on request" if found.tower == "dropped" else ""
    return f"grafted from {markup.name(found.tower_base)}, bit for bit, since the source had lost its own"


def _calibration(artifact: Artifact, markup: Markup) -> str:
    matrix = artifact.matrix
    if matrix is None:
        return ""
    of = f", from {', '.join(map(markup.name, matrix.datasets))}" if matrix.datasets else ""
    # The corpora of ours have it in their names.
    many = "" if matrix.tokens is None or "tokens" in of else f", {matrix.tokens:,} tokens"
    return f"importance matrix {markup.name(matrix.file)}{of}{many}"


def _tool(artifact: Artifact, markup: Markup) -> str:
    return f"qexport {markup.text(artifact.tool)}" if artifact.tool else ""


def _engine(artifact: Artifact, markup: Markup) -> str:
    return markup.text(artifact.verification.engine) if artifact.verification else ""


_FACTS: tuple[tuple[str, Callable[[Artifact, Markup], str]], ...] = (
    ("Source", _source),
    ("MTP head", _head),
    ("Vision tower", _tower),
    ("Calibration", _calibration),
    ("Written by", _tool),
    ("Verified with", _engine),
)


def glossary(artifacts: Sequence[Artifact]) -> dict[str, str]:
    """The columns that have figures of these artifacts, each with what it means."""
    measures = [artifact.measures for artifact in artifacts]
    found: dict[str, str] = {}
    if any(each.kld or each.same_top1 for each in measures):
        counts = sorted({each.positions for each in measures if each.positions})
        at = f"at {' and '.join(f'{count:,}' for count in counts)} positions of" if counts else "over"
        found["KL divergence"] = (
            "How far the probabilities for the next token are from the unquantized model's, in nats, the "
            f"mean {at} a text that nothing was calibrated on. 0 would be no loss. ± is the standard error, "
            "from blocks of 64 neighbouring positions; what differs by less than two of them may be the same."
        )
        found["99\u00a0%"] = (
            "The divergence that one position in a hundred exceeds. The mean says what is lost on the whole; "
            "this shows rare blunders."
        )
        found["Same top-1"] = (
            "The share of positions where the likeliest next token is the unquantized model's."
        )
    if any(artifact.predicted for artifact in artifacts):
        found["Predicted"] = (
            "The KL divergence that was predicted before anything was written, from what errors in the "
            "weights cost on the text that was calibrated on; on other text, and where a model routes, it is "
            "more."
        )
    if any(artifact.against_plain for artifact in artifacts):
        found["Beside plain"] = (
            "How much less the KL divergence is than that of the plain type at the same size, on text that "
            "was not calibrated on: types of tensors were chosen by what errors in them cost. Where that was "
            "no better beyond noise, the plain type was written."
        )
    if any(each.routing_flips for each in measures):
        found["Routing flips"] = (
            "The share of tokens that a mixture sends to other experts than the unquantized model does, the "
            "mean over its layers and the same positions."
        )
    if any(each.perplexity_ratio for each in measures):
        found["Perplexity ratio"] = (
            "The perplexity on that text over the unquantized model's; 1 is no loss, 1.01 one per cent."
        )
    if any(artifact.verification and artifact.verification.images for artifact in artifacts):
        found["Images"] = (
            "Two small pictures were shown: what comes out of the vision tower, and the text that follows, "
            "are the unquantized model's. Text alone: the tower is not there."
        )
    if any(each.acceptance for each in measures):
        found["MTP acceptance"] = (
            "The MTP head drafts tokens that the model then accepts or rejects; the text is the same either "
            "way, and the more is accepted, the faster it comes. Acceptance is measured over held-out text, "
            "one token ahead; the source's is its unquantized head's by the same measure."
        )
    if any(artifact.bits_per_weight for artifact in artifacts):
        found["Bits/weight"] = (
            "Bits of the stored tensors, scales included, for each weight; the source has 16. Size counts "
            "all files."
        )
    return found


def gate_words(name: str) -> str:
    return _GATES.get(name, name)


def gate_value(name: str, value: float | None) -> str:
    """A limit or a value, in the unit of its gate."""
    if value is None:
        return "not measured"
    if name == "max_size":
        return size_text(int(value))
    if name == "predicted_ratio":
        return f"{value:.2f}"
    if name == "max_mean_kld":
        shown = nats(value)
        return f"{shown.rstrip('0').rstrip('.') if '.' in shown else shown} nats"
    return percent(value) if name in _GATES else f"{value:g}"
