"""Judgements on what a runtime said: pure functions from plain data to findings."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qexport.children.failure import Failure
from qexport.receipt.verification import Check, Status, Verdict
from qexport.sizes import counted

if TYPE_CHECKING:
    from qexport.children.failure import RuntimeFailure
    from qexport.formats.tolerance import Tolerance
    from qexport.verification.reference import Scored
    from qexport.verification.runtime import Generation


# Of a head without its source to compare with, over held-out text.
# Heads broken by a wrong norm, a wrong tie or a lost tensor were reported at 0 to 11 % (MTPLX, vllm-mlx#471,
# GSQ#11), working ones, heavily quantized or grafted onto a fine-tune included, from 30 % up.
ACCEPTANCE_FLOOR = 0.15
# With MTP, llama.cpp checks several tokens in one batch; the batch's shape changes the order of sums. On the
# lab model that moved log-probabilities by 0.001 (BF16) to 0.011 (Q4_K_M). 0.2 nat is a choice that such
# noise can turn in a large model, and still one that a broken roll-back of the state would not look like.
MTP_TIE = 0.2

# A cycle this short over this share of the answer is no language; longer ones are what small models do.
_MAX_PERIOD = 4
_CYCLE_SHARE = 0.75
_MIN_TOKENS_FOR_CYCLE = 12
_UNUSED = re.compile(
    r"\[PAD\d+\]|<unused\d+>|<\|reserved_special_token_\d+\|>|\[unused\d+\]|\ufffd|[\x00-\x08\x0e-\x1f]"
)


def skipped(check: Check, reason: str, **data: Any) -> Verdict:
    """A check that was not made, and why."""
    return Verdict(check, Status.SKIPPED, reason, data)


def failed(check: Check, failure: RuntimeFailure, *, about: str = "") -> Verdict:
    """A check that the runtime failed; one that this machine is too small for, or the runtime has not, was
    not made."""
    words = f"{about}: {failure.message}" if about else failure.message
    status = Status.SKIPPED if failure.kind is Failure.LACKING else Status.FAIL
    return Verdict(check, status, words, {"kind": failure.kind.value, "log": list(failure.log)})


def judge_finite(generations: Sequence[Generation]) -> Verdict:
    """Every log-probability that was given is a number."""
    values = [
        value
        for generation in generations
        for step in generation.steps
        for value in (step.logprob, *(other for _, other in step.top))
        if value is not None
    ]
    if not values:
        return skipped(Check.FINITE, "the runtime gave no log-probabilities")
    # Minus infinity among the alternatives is a probability that underflowed; as the chosen token it is not.
    broken = sum(1 for value in values if math.isnan(value) or value == math.inf)
    broken += sum(1 for generation in generations for step in generation.steps if step.logprob == -math.inf)
    data = {"values": len(values), "not_finite": broken}
    if broken:
        return Verdict(
            Check.FINITE, Status.FAIL, f"{broken} of {len(values)} log-probabilities are no numbers", data
        )
    return Verdict(Check.FINITE, Status.PASS, f"{len(values)} log-probabilities, all finite", data)


def judge_text(
    generations: Sequence[Generation],
    scores: Sequence[Sequence[Scored]] | None = None,
    *,
    near_tie: float = 0.0,
    agreement: float = 1.0,
) -> Verdict:
    """The text is text: not empty, not one token or a short cycle over and over, not replacement characters.

    A source may itself be degenerate (a tiny model in a greedy loop). That is not the file's fault: where the
    source's ``scores`` would have chosen this share of the answer's tokens too, or been within ``near_tie``
    nats of it, the text passes, and the summary says so.
    """
    if not generations:
        return skipped(Check.TEXT, "nothing was generated")
    faults: list[str] = []
    excused: list[str] = []
    for at, generation in enumerate(generations):
        fault = _degenerate(generation)
        if fault is None:
            continue
        words = f"prompt {at + 1}: {fault}"
        gaps = [score.gap for score in scores[at]] if scores is not None else []
        same = bool(gaps) and sum(gap <= near_tie for gap in gaps) >= agreement * len(gaps)
        (excused if same else faults).append(words)
    data = {"faults": faults, "same_in_source": excused}
    if faults:
        return Verdict(Check.TEXT, Status.FAIL, "; ".join(faults), data)
    if excused:
        return Verdict(Check.TEXT, Status.PASS, "the source says the same: " + "; ".join(excused), data)
    return Verdict(Check.TEXT, Status.PASS, f"{counted(len(generations), 'answer')}, none degenerate", data)


def _degenerate(generation: Generation) -> str | None:
    tokens = generation.tokens
    if generation.stop == "eos":
        tokens = tokens[:-1]
    if not tokens:
        return "the answer is empty"
    if not _UNUSED.sub("", generation.text).strip():
        return f"nothing readable in {len(tokens)} tokens: {generation.text[:40]!r}"
    if len(tokens) < _MIN_TOKENS_FOR_CYCLE:
        return None
    for period in range(1, _MAX_PERIOD + 1):
        repeats = sum(a == b for a, b in zip(tokens, tokens[period:], strict=False))
        if repeats >= _CYCLE_SHARE * len(tokens):
            what = "one token" if period == 1 else f"a cycle of {period} tokens"
            return f"{what} repeated over {repeats} of {len(tokens)} tokens: {generation.text[-40:]!r}"
    return None


def judge_agreement(
    generations: Sequence[Generation],
    scores: Sequence[Sequence[Scored]],
    limits: Tolerance,
    *,
    file_type: str,
    source: str,
    noise: float = 0.0,
) -> Verdict:
    """The source, given the same tokens, would have chosen them too, as far as the stored type promises.

    ``noise`` is what the source's own arithmetic adds to differences of log-probability.
    """
    gaps: list[float] = []
    deltas: list[float] = []
    for generation, scored in zip(generations, scores, strict=True):
        for step, score in zip(generation.steps, scored, strict=True):
            gaps.append(score.gap)
            if step.logprob is not None:
                deltas.append(abs(step.logprob - score.logprob))
    if not gaps:
        return skipped(Check.AGREEMENT, "nothing was generated that could be compared")
    exact = sum(gap == 0 for gap in gaps) / len(gaps)
    agreement = sum(gap <= limits.near_tie for gap in gaps) / len(gaps)
    mean_delta = sum(deltas) / len(deltas) if deltas else None
    data = {
        "tokens": len(gaps),
        "exact": exact,
        "agreement": agreement,
        "worst_gap": max(gaps),
        "mean_delta": mean_delta,
        "source": source,
        "file_type": file_type,
        "limits": {
            "agreement": limits.agreement,
            "near_tie": limits.near_tie,
            "mean_delta": limits.mean_delta,
            "noise": noise,
            "reason": limits.reason,
        },
    }
    if broken := sum(not math.isfinite(number) for number in (*gaps, *deltas)):
        words = f"{broken} differences of log-probability are not finite"
        return Verdict(Check.AGREEMENT, Status.FAIL, words, data)
    words = f"{agreement:.1%} of {len(gaps)} tokens agree with the source ({exact:.1%} exactly)"
    if mean_delta is not None:
        words += f", log-probabilities differ by {mean_delta:.3f} on average"
    most = limits.mean_delta + noise
    faults = []
    if not agreement >= limits.agreement:
        faults.append(f"at least {limits.agreement:.0%} expected of {file_type}")
    if mean_delta is not None and not mean_delta <= most:
        faults.append(f"at most {most:g} expected of {file_type}")
    if faults:
        return Verdict(Check.AGREEMENT, Status.FAIL, f"{words}; {', '.join(faults)}", data)
    return Verdict(Check.AGREEMENT, Status.PASS, words, data)


def judge_mtp_text(
    plain: Sequence[Generation], mtp: Sequence[Generation], *, tie: float = MTP_TIE
) -> Verdict:
    """Greedy text with MTP is greedy text without; a first difference is allowed at a near-tie only."""
    differences: list[dict[str, Any]] = []
    for at, (before, after) in enumerate(zip(plain, mtp, strict=True)):
        pairs = enumerate(zip(before.tokens, after.tokens, strict=False))
        place = next((i for i, (one, other) in pairs if one != other), None)
        if place is None:
            if len(before.tokens) != len(after.tokens):
                shorter = min(len(before.tokens), len(after.tokens))
                differences.append({"prompt": at + 1, "position": shorter, "gap": math.inf})
            continue
        differences.append(
            {"prompt": at + 1, "position": place, "gap": _gap(before, place, after.tokens[place])}
        )
    data = {"tie": tie, "differences": differences}
    wide = [one for one in differences if one["gap"] is not None and not one["gap"] <= tie]
    if wide:
        first = wide[0]
        words = (
            f"prompt {first['prompt']}: the text changes with MTP at token {first['position']}, "
            f"where the choice was no near-tie (gap {first['gap']:.2f} nat, {tie:g} allowed)"
        )
        return Verdict(Check.MTP_TEXT, Status.FAIL, words, data)
    if any(one["gap"] is None for one in differences):
        words = "the text changes with MTP where the runtime gave no log-probabilities to tell a near-tie by"
        return skipped(Check.MTP_TEXT, words, **data)
    if differences:
        widest = max(one["gap"] for one in differences)
        words = (
            f"same text with MTP up to {counted(len(differences), 'near-tie')} of at most {widest:.3f} nat"
        )
        return Verdict(Check.MTP_TEXT, Status.PASS, words, data)
    return Verdict(Check.MTP_TEXT, Status.PASS, "the same text with and without MTP", data)


def _gap(generation: Generation, place: int, other: int) -> float | None:
    """How much likelier the token at ``place`` was than ``other``; None where no probabilities were given."""
    step = generation.steps[place]
    if not step.top:
        return None
    top = dict(step.top)
    # A token outside the alternatives is less likely than the last of them.
    return top.get(step.token, math.nan) - top.get(other, -math.inf)


def judge_acceptance(generations: Sequence[Generation]) -> Verdict:
    """The MTP head drafts at all.

    How much is accepted over a few short prompts is said and judges nothing: heads that differ by a factor of
    two in use had 32 to 41 %. What a head is worth is measured over held-out text (``mtp_head``).
    """
    drafted = sum(generation.draft_n for generation in generations)
    accepted = sum(generation.draft_accepted for generation in generations)
    data: dict[str, Any] = {"drafted": drafted, "accepted": accepted, "prompts": len(generations)}
    if drafted == 0:
        return Verdict(Check.MTP_ACCEPTANCE, Status.FAIL, "the MTP head drafted nothing", data)
    over = counted(len(generations), "prompt")
    words = f"it drafts; {accepted} of {drafted} drafted tokens accepted over {over}"
    return Verdict(Check.MTP_ACCEPTANCE, Status.PASS, words, data)


def judge_tokens(probes: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> Verdict:
    """Every probe ``(text, source's ids, runtime's ids)`` is cut as the source's tokenizer cuts it."""
    wrong = [
        (text, list(source), list(runtime)) for text, source, runtime in probes if [*source] != [*runtime]
    ]
    data = {
        "probes": len(probes),
        "different": [
            {"text": text, "source": source, "runtime": runtime} for text, source, runtime in wrong[:5]
        ],
    }
    if not probes:
        return skipped(Check.TOKENS, "no probe strings")
    if wrong:
        words = f"{len(wrong)} of {len(probes)} strings are tokenized differently, the first {wrong[0][0]!r}"
        return Verdict(Check.TOKENS, Status.FAIL, words, data)
    return Verdict(
        Check.TOKENS, Status.PASS, f"{counted(len(probes), 'string')} tokenized as by the source", data
    )
