"""An artifact beside its source over one text, each run once: divergence, and the MTP heads of both.

Limits, measured on a trained hybrid of 10 M parameters (4080 positions of held-out text). Trunk and head:
mean divergence from the source's; acceptance, which is 0.525 in the source:

    Q8_0 .0001 .0001 .525   Q6_K .0010 .0008 .524   Q4_K_M .0100 .0064 .518   Q4_0 .021 .012 .509
    Q3_K_M .040 .025 .525   Q2_K .138 .097 .497   MLX 6 bits .0015 .0009 .522   mxfp4 .040 .025 .518
    mixed_3_6 .074 .041 .509   MLX nvfp4 .031 .020 .509   mxfp8 .0023 .0015 .526   FP8 .0012 .0006 .523

Heads broken on purpose, on the exact trunk:

    norms shifted twice 1.31 .403      halves of fc exchanged 2.98 .035     fc of zeros 3.23 .001
    q and k norms twice .039 .485      norms before fc twice .080 .534      attention lost .134 .485

So acceptance alone does not tell every broken head of a small model, and the divergence of heads does, seen
against that of the trunks: rounding moves both alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from qexport.artifacts.input_scales import TOP
from qexport.receipt.measures import Estimate, Flips, Measures
from qexport.receipt.text import nats, with_error
from qexport.receipt.verification import Check, Status, Verdict
from qexport.verification.divergence import Divergence, compare_runs
from qexport.verification.judge import ACCEPTANCE_FLOOR
from qexport.verification.mtp_head import HeadScore, score_head
from qexport.verification.routing import routing_flips
from qexport.verification.text_run import TextRun, run_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from qexport.evidence.options import StreamOptions
    from qexport.families.view import ModelView
    from qexport.headtune.text import Chunked
    from qexport.progress import Progress


DAMAGED = 1.0
"""Nats in the mean that no usable quantization reaches; what recipes promise is far below it."""
# Acceptance that a stored type may cost: 2-bit heads lose 9 points, 4-bit ones 0.3
# (https://github.com/ggml-org/llama.cpp/pull/28351).
_LOSS = 0.03
# A trunk that says other things is harder to guess for a head that was trained with the one before.
_PER_NAT = 0.5
# Nats that a head may be further from the source's than rounding explains, and what it explains: a multiple
# of the trunk's own divergence. A 4-bit head on an exact trunk is at 0.012.
_HEAD_SLACK, _HEAD_FACTOR = 0.02, 3.0
_FEW = 256  # positions, of which a mean may be beyond that by chance
_CROWDED = 2.0


@dataclass(frozen=True)
class Comparison:
    """What was measured; the heads' numbers are ``None`` where there is no head.

    Attributes:
        trunk: divergence of what the models say next.
        heads: divergence of what the heads say of the token after.
        score, source_score: acceptance of each head by its own trunk.
        flips: of a mixture of experts, tokens that are sent elsewhere.
        room: where inputs were rounded to four bits: of each matrix, the largest that entered it as a share
            of what its scale leaves room for.
    """

    trunk: Divergence
    heads: Divergence | None
    score: HeadScore | None
    source_score: HeadScore | None
    flips: Flips | None = None
    room: tuple[float, ...] = ()

    def findings(self, *, limit: float = DAMAGED, headless: bool = False) -> tuple[Verdict, ...]:
        """Both judgements, of the head only where there is one to judge.

        Args:
            limit: as in :func:`judge_divergence`.
            headless: the artifact was asked for without the head that the source has.
        """
        trunk = judge_divergence(self.trunk, limit=limit, rounded=len(self.room))
        found = [trunk, *([judge_room(self.room)] if self.room else [])]
        if self.score is not None or not (headless or self.source_score is None):
            found.append(judge_head(self.score, self.source_score, trunk=self.trunk, heads=self.heads))
        return tuple(found)

    def measures(self, known: Measures) -> Measures:
        """The figures, with those that are known already."""
        trunk, score, source = self.trunk, self.score, self.source_score
        return replace(
            known,
            positions=trunk.positions,
            kld=trunk.kld,
            same_top1=Estimate(trunk.same_top, trunk.same_top_error),
            perplexity_ratio=trunk.perplexity,
            routing_flips=self.flips,
            head=None if score is None else score.drafting,
            source_head=None if source is None else source.drafting,
            drafts=None if score is None else score.positions,
            acceptance=None if score is None else score.estimate,
            source_acceptance=None if source is None else source.estimate,
        )


def compare(
    source: ModelView | TextRun,
    artifact: ModelView | TextRun,
    text: np.ndarray | Chunked,
    options: StreamOptions | None = None,
    *,
    first: int | None = None,
    progress: Progress | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
) -> Comparison:
    """Run the source and the artifact, where they are no runs already, over a text and compare.

    Args:
        source: the bf16 model, or :func:`~qexport.verification.text_run.run_text` of it over the same text:
            keep that for all artifacts of one model.
        artifact: an artifact's view; or a run of it.
        text: as for ``run_text``; ``heldout_text`` gives some.
        first: the first position of a chunk that counts; half of the chunk by default. Heads are judged on
            all of it.
        inputs: of W4A4, the artifact's scales of inputs: those are rounded to four bits, as where it is run.

    Raises:
        InputError, EnvironmentProblem: as ``run_text``.
    """
    if not isinstance(source, TextRun):
        with run_text(source, text, options, progress) as run:
            return compare(run, artifact, text, options, first=first, progress=progress, inputs=inputs)
    if not isinstance(artifact, TextRun):
        with run_text(artifact, text, options, progress, inputs) as run:
            return compare(source, run, text, options, first=first, progress=progress)
    trunk = compare_runs(source, artifact, first=first)
    one, other = (score_head(each) if each.view.mtp_layers else None for each in (artifact, source))
    both = one is not None and other is not None
    return Comparison(
        trunk=trunk,
        heads=compare_runs(source, artifact, first=first, head=True) if both else None,
        score=one,
        source_score=other,
        flips=routing_flips(source, artifact, first=first),
        room=tuple(_room(artifact.largest, artifact.inputs)),
    )


def judge_divergence(found: Divergence, *, limit: float = DAMAGED, rounded: int = 0) -> Verdict:
    """The divergence against ``limit``, nats in the mean; ``rounded`` matrices had inputs of four bits."""
    data: dict[str, Any] = {**found.to_json(), "limit": limit}
    if rounded:
        data["inputs_rounded"] = rounded
    if broken := _not_finite(found):
        words = f"{broken} is not finite: a weight is damaged"
        return Verdict(Check.DIVERGENCE, Status.FAIL, words, data)
    mean, same = Estimate(found.mean, found.error), Estimate(found.same_top, found.same_top_error)
    words = f"{with_error(mean)} nats in the mean over {found.positions} positions, "
    words += "" if found.p99 is None else f"{nats(found.p99)} at the 99th percentile, "
    words += f"{with_error(same, share=True)} of first choices the same"
    words += f", inputs of {rounded} matrices rounded to four bits" if rounded else ""
    if not found.mean <= limit:
        return Verdict(Check.DIVERGENCE, Status.FAIL, f"{words}; at most {limit:g} expected", data)
    return Verdict(Check.DIVERGENCE, Status.PASS, words, data)


def _room(largest: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> Iterator[float]:
    """Of each matrix, experts that nothing was sent to left out."""
    for name, scales in inputs.items():
        for seen, scale in zip(largest.get(name, ()), scales, strict=False):
            if seen:
                yield float(seen) * float(scale) / TOP


def judge_room(shares: Sequence[float]) -> Verdict:
    """Whether the scales of inputs leave room for those of a text that they were not measured on.

    What is larger than its scale leaves room for is cut off. Single matrices meet larger inputs in another
    text; that half of all should meet inputs of twice the size and more is no matter of the text.
    """
    middle, cut = median(shares), sum(share > 1 for share in shares)
    data = {"matrices": len(shares), "cut_off": cut, "median": middle, "most": max(shares), "limit": _CROWDED}
    words = f"inputs of {cut} of {len(shares)} matrices are cut off somewhere in the text, the largest at "
    words += f"{max(shares):.2g} times its room; half take {middle:.2g} of it or less"
    if not middle <= _CROWDED:
        words += f"; at most {_CROWDED:g} expected: the scales of inputs are too large"
        return Verdict(Check.INPUT_ROOM, Status.FAIL, words, data)
    return Verdict(Check.INPUT_ROOM, Status.PASS, words, data)


def _not_finite(*measured: Divergence | HeadScore | None) -> str:
    """The first number that is NaN or infinite, by its name; empty where all are finite."""
    numbers = [pair for found in measured if found is not None for pair in found.to_json().items()]
    return next((name for name, number in numbers if number is not None and not math.isfinite(number)), "")


def judge_head(
    score: HeadScore | None,
    source: HeadScore | None,
    *,
    trunk: Divergence | None = None,
    heads: Divergence | None = None,
) -> Verdict:
    """The head of an artifact beside that of its source.

    Args:
        score: of the artifact; ``None``: it has no head, and should.
        source: of the source; ``None``: not known, or it has none.
        trunk, heads: divergence of trunk and head from the source's, where both were run.
    """
    check = Check.MTP_HEAD
    if score is None:
        return Verdict(check, Status.FAIL, "the source has an MTP head, the artifact has none")
    if broken := _not_finite(score, heads):
        return Verdict(check, Status.FAIL, f"the head's {broken} is not finite: a weight is damaged")
    share = with_error(score.estimate, share=True)
    words = f"{share} of {score.positions} drafts are the model's own choice"
    data: dict[str, Any] = {**score.to_json(), "source": source.to_json() if source else None}
    if source is None:
        least = max(ACCEPTANCE_FLOOR, score.chance)
        data["least"] = least
        if not score.acceptance >= least:
            words += f"; at least {least:.0%} expected: so much is right if the same word is always drafted"
            return Verdict(check, Status.FAIL, words, data)
        words += "; no head to compare with: the source has none, and whence it was taken is not named"
        return Verdict(check, Status.PASS, words, data)
    moved = trunk.mean if trunk is not None else 0.0
    least = source.acceptance - _LOSS - _PER_NAT * moved - 2 * score.error
    data["least"] = least
    words += f" ({with_error(source.estimate, share=True)} in the source), "
    tokens, beside = (with_error(each.drafting.usual) for each in (score, source))
    words += f"{tokens} tokens per verification ({beside})"
    faults = [] if score.acceptance >= least else [f"at least {least:.1%} expected"]
    if heads is not None and trunk is not None:
        most = _HEAD_SLACK + _HEAD_FACTOR * trunk.mean
        data |= {"divergence": heads.to_json(), "most": most}
        words += f", {with_error(heads.kld.estimate)} nats from the source's head"
        if not heads.mean <= most:
            expected = f"at most {most:.4f} expected beside a trunk at {trunk.mean:.4f}"
            if not faults and heads.positions < _FEW and heads.mean - 2 * (heads.error or 0.0) <= most:
                words += f"; {expected}, and {heads.positions} positions are too few to tell (see --measure)"
                return Verdict(check, Status.SKIPPED, words, data)
            faults.append(expected)
    if faults:
        return Verdict(check, Status.FAIL, f"{words}; {', '.join(faults)}", data)
    return Verdict(check, Status.PASS, words, data)
