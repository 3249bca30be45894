"""Each judgement fails for its own reason, on data made by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from verify_fakes import generation, scored, steps

from qexport.formats.registry import tolerance
from qexport.receipt.verification import Check, Status
from qexport.verification import judge
from qexport.verification.runtime import Predicted

STRICT = tolerance("BF16")
WORDS = tuple(range(100, 124))


def agreement(answers, scores, limits=STRICT, **fields):
    return judge.judge_agreement(answers, scores, limits, file_type="BF16", source="source", **fields)


def test_finite_numbers_pass_and_are_counted():
    finding = judge.judge_finite([generation(WORDS)])
    assert finding.status is Status.PASS
    assert finding.data["values"] == 24 * 3


@pytest.mark.parametrize(
    "bad",
    [
        Predicted(5, math.nan, ((5, math.nan),)),
        Predicted(5, -0.1, ((5, -0.1), (6, math.nan))),
        Predicted(5, -math.inf),
        Predicted(5, math.inf),
        Predicted(5, -0.1, ((6, math.inf), (5, -0.1))),
    ],
)
def test_a_number_that_is_none_fails(bad):
    finding = judge.judge_finite([generation(steps=(*steps(WORDS), bad))])
    assert finding.status is Status.FAIL
    assert finding.data["not_finite"] >= 1


def test_an_alternative_of_no_probability_is_finite_enough():
    underflowed = Predicted(5, -0.1, ((5, -0.1), (6, -math.inf)))
    assert judge.judge_finite([generation(steps=(underflowed,))]).status is Status.PASS


def test_no_log_probabilities_are_not_verified():
    assert judge.judge_finite([generation(steps=(Predicted(1), Predicted(2)))]).status is Status.SKIPPED


@pytest.mark.parametrize(
    ("tokens", "text", "stop", "reason"),
    [
        ((), "", "limit", "empty"),
        ((7,), "", "eos", "empty"),
        (WORDS, "  \n\t ", "limit", "nothing readable"),
        (WORDS, "\ufffd\ufffd \ufffd", "limit", "nothing readable"),
        (WORDS, "<unused12>[PAD151936]", "limit", "nothing readable"),
        ((9,) * 24, "the the the", "limit", "one token repeated"),
        ((1, 2, 3, *(4, 5) * 12), "a b a b", "limit", "a cycle of 2 tokens"),
        ((4, 5, 6, 7) * 6, "a b c d a b c d", "limit", "a cycle of 4 tokens"),
    ],
)
def test_degenerate_text_fails(tokens, text, stop, reason):
    finding = judge.judge_text([generation(WORDS), generation(tokens, text, stop=stop)])
    assert finding.status is Status.FAIL
    assert "prompt 2" in finding.summary
    assert reason in finding.summary


@pytest.mark.parametrize("tokens", [WORDS, (1, 2, 3, 1, 2, 3), (*range(16), *(3,) * 8)])
def test_text_that_repeats_a_little_passes(tokens):
    assert judge.judge_text([generation(tokens)]).status is Status.PASS


def test_a_loop_is_excused_only_when_the_source_loops_too():
    loop = generation((9,) * 24, "the the")
    same = judge.judge_text([loop], [scored(loop.tokens)], near_tie=0.1)
    assert same.status is Status.PASS
    assert "the source says the same" in same.summary
    started_elsewhere = (*scored((9,), gap=2.0), *scored((9,) * 23))
    assert judge.judge_text([loop], [started_elsewhere], near_tie=0.1).status is Status.FAIL


def test_agreement_counts_near_ties_and_reports_both():
    tokens = scored(WORDS[:20]) + scored(WORDS[20:], gap=0.05)
    finding = agreement([generation(WORDS)], [tokens])
    assert finding.status is Status.PASS
    assert finding.data["exact"] == pytest.approx(20 / 24)
    assert finding.data["agreement"] == 1.0


def test_agreement_too_low_fails():
    tokens = scored(WORDS[:20]) + scored(WORDS[20:], gap=0.5)
    finding = agreement([generation(WORDS)], [tokens])
    assert finding.status is Status.FAIL
    assert "at least 96% expected" in finding.summary


def test_a_shifted_log_probability_fails_a_strict_type_and_passes_a_loose_one():
    scores = [scored(WORDS, logprob=-0.65)]
    assert "at most 0.06 expected" in agreement([generation(WORDS)], scores).summary
    assert agreement([generation(WORDS)], scores, tolerance("Q4_K_M")).status is Status.PASS
    assert agreement([generation(WORDS)], scores, noise=0.2).status is Status.PASS


def test_nan_never_agrees():
    broken = generation(steps=tuple(Predicted(t, math.nan, ((t, math.nan),)) for t in WORDS))
    assert agreement([broken], [scored(WORDS)]).status is Status.FAIL
    assert agreement([generation(WORDS)], [scored(WORDS, logprob=math.nan)]).status is Status.FAIL


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_one_gap_that_is_no_number_fails_among_many_that_agree(number):
    without = generation(steps=tuple(Predicted(token) for token in range(200)))
    scores = (*scored(range(199)), replace(scored([199])[0], greedy_logprob=number))
    finding = agreement([without], [scores])
    assert finding.status is Status.FAIL
    assert "not finite" in finding.summary


def test_tolerances_loosen_with_the_bits():
    names = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_S", "Q3_K_L", "IQ2_XS", "IQ1_S")
    order = [tolerance(name) for name in names]
    for tight, loose in itertools.pairwise(order):
        assert tight.agreement > loose.agreement or tight.mean_delta < loose.mean_delta
        assert tight.mean_delta < loose.mean_delta
        assert tight.near_tie <= loose.near_tie
    assert tolerance("") == tolerance("TQ1_0") == tolerance("IQ1_M")
    assert tolerance("IQ2_M") == tolerance("Q2_K")


def changed(at: int, to: int):
    return (*WORDS[:at], to, *range(200, 200 + len(WORDS) - at - 1))


def test_the_same_text_with_mtp_passes():
    assert judge.judge_mtp_text([generation(WORDS)], [generation(WORDS)]).summary == (
        "the same text with and without MTP"
    )


def test_mtp_may_turn_a_near_tie_only():
    tie = Predicted(WORDS[10], -0.7, ((WORDS[10], -0.7), (77, -0.75)))
    plain = generation(steps=(*steps(WORDS[:10]), tie, *steps(WORDS[11:])))
    near = judge.judge_mtp_text([plain], [generation(changed(10, 77))])
    assert near.status is Status.PASS
    assert near.data["differences"][0] == {"prompt": 1, "position": 10, "gap": pytest.approx(0.05)}
    for other in (78, 77):
        far = judge.judge_mtp_text([plain], [generation(changed(10, other))], tie=0.01)
        assert far.status is Status.FAIL
        assert "token 10" in far.summary


def test_mtp_that_ends_earlier_fails():
    assert judge.judge_mtp_text([generation(WORDS)], [generation(WORDS[:9])]).status is Status.FAIL


def test_a_difference_that_cannot_be_weighed_is_not_verified():
    blind = generation(steps=(*steps(WORDS[:10]), Predicted(WORDS[10]), *steps(WORDS[11:])))
    finding = judge.judge_mtp_text([blind], [generation(changed(10, 77))])
    assert finding.status is Status.SKIPPED


@pytest.mark.parametrize(
    ("drafted", "accepted", "status", "words"),
    [
        (99, 60, Status.PASS, "60 of 99"),
        (258, 4, Status.PASS, "4 of 258 drafted tokens accepted over 1 prompt"),
        (0, 0, Status.FAIL, "drafted nothing"),
    ],
)
def test_acceptance(drafted, accepted, status, words):
    finding = judge.judge_acceptance([generation(draft_n=drafted, draft_accepted=accepted)])
    assert finding.status is status
    assert words in finding.summary


def test_tokens_must_be_the_sources():
    same = judge.judge_tokens([("a", [1], (1,)), ("b", [2, 3], (2, 3))])
    assert same.status is Status.PASS
    other = judge.judge_tokens([("a", [1], (1,)), ("12", [2, 3], (4,))])
    assert other.status is Status.FAIL
    assert other.data["different"] == [{"text": "12", "source": [2, 3], "runtime": [4]}]
    assert judge.judge_tokens([]).status is Status.SKIPPED
    assert judge.judge_tokens([]).check is Check.TOKENS
