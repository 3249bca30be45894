"""The MTP head judged by running it, on the trained demo model: broken heads are told from rounded ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import qexport.demo
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.memory import MemoryCheckpoint
from qexport.doctor import diagnose
from qexport.errors import InputError
from qexport.families.roles import NORM_ROLES, Block, Role
from qexport.families.view import ModelTensor, ModelView
from qexport.headtune.text import Chunked
from qexport.onepass.rows import read_rows
from qexport.receipt.measures import Drafting, Estimate, Measures
from qexport.receipt.verification import Check, Status
from qexport.verification.comparison import Comparison, compare, judge_divergence, judge_head
from qexport.verification.divergence import Divergence
from qexport.verification.mtp_head import HeadScore, score_head
from qexport.verification.text_run import COMPARED, DRAFTED, TextRun, heldout_text, heldout_tokens, run_text

MODEL = Path(qexport.demo.__file__).parent / "model"
Change = Callable[[ModelTensor, torch.Tensor], torch.Tensor | None]


def _view(mtp: str = "auto") -> ModelView:
    return diagnose(LocalCheckpoint(MODEL), mtp=mtp).repaired.view()  # type: ignore[arg-type]


def changed(view: ModelView, change: Change, block: Block = Block.MTP) -> ModelView:
    """The view with some tensors of a block replaced."""
    tensors = []
    for tensor in view:
        if tensor.block is block:
            values = read_rows(tensor.data, 0, tensor.data.matrix_shape[0]).float().reshape(tensor.shape)
            new = change(tensor, values)
            if new is not None:
                made = MemoryCheckpoint("changed", {tensor.name: new.contiguous()})
                tensor = replace(tensor, data=made.logical(tensor.name))
        tensors.append(tensor)
    return replace(view, tensors=tuple(tensors))


@pytest.fixture(scope="module")
def text() -> Chunked:
    return heldout_text(_view(), tokens=2048)


@pytest.fixture(scope="module")
def source(text: Chunked) -> Iterator[TextRun]:
    with run_text(_view(), text) as run:
        yield run


@pytest.fixture(scope="module")
def quantized(text: Chunked) -> Iterator[TextRun]:
    """A trunk of five bits, with the head as it is."""
    with run_text(changed(_view(), _rounded(16), Block.TRUNK), text) as run:
        yield run


def scored(acceptance: float, positions: int = 4000, error: float | None = None) -> HeadScore:
    """A score one token ahead; further ahead it is half as good."""
    shares = (Estimate(acceptance, error), Estimate(acceptance / 2, error))
    tokens = (Estimate(1.5, 0.1), Estimate(1.75, 0.1))
    return HeadScore(Drafting(positions, shares, tokens, tokens), chance=0.2)


def test_the_text_is_that_of_divergence_and_excerpts_of_every_domain(text: Chunked) -> None:
    compared, drafted = text.part(COMPARED), text.part(DRAFTED)
    assert (text.ids[compared] == heldout_tokens(_view(), tokens=2048)).all()
    assert text.ids.shape == (8, 512)
    ours, theirs = (set(np.unique(text.document[part])) for part in (compared, drafted))
    assert not ours & theirs
    assert len(theirs) > 8
    domains = {text.domains[each] for each in theirs}
    assert domains == {"code", "reasoning", "chat", "tools", "prose", "multilingual"}
    assert not text.counts[drafted].all()  # prompts are read
    headless = heldout_text(_view("drop"), tokens=1024)
    assert headless.ids.shape == (2, 512)


def _shifted(tensor: ModelTensor, values: torch.Tensor) -> torch.Tensor | None:
    return values + 1 if tensor.role in NORM_ROLES else None


def _raw(tensor: ModelTensor, values: torch.Tensor) -> torch.Tensor | None:
    return values - 1 if tensor.role in NORM_ROLES else None


def _swapped(tensor: ModelTensor, values: torch.Tensor) -> torch.Tensor | None:
    return torch.cat(values.chunk(2, dim=1)[::-1], dim=1) if tensor.role is Role.MTP_FC else None


def _zeroed(tensor: ModelTensor, values: torch.Tensor) -> torch.Tensor | None:
    return torch.zeros_like(values) if tensor.role is Role.MTP_FC else None


def _no_attention(tensor: ModelTensor, values: torch.Tensor) -> torch.Tensor | None:
    return torch.zeros_like(values) if tensor.role is Role.ATTN_OUTPUT else None


def _query_shifted(tensor: ModelTensor, values: torch.Tensor) -> torch.Tensor | None:
    return values + 1 if tensor.role in (Role.ATTN_Q_NORM, Role.ATTN_K_NORM) else None


def _rounded(levels: int) -> Change:
    """Each row to so many steps: what a quantization of few bits does."""

    def change(tensor: ModelTensor, values: torch.Tensor) -> torch.Tensor | None:
        if len(tensor.shape) != 2:
            return None
        step = values.abs().amax(1, keepdim=True) / levels
        return (values / step).round() * step

    return change


def test_the_source_beside_itself(source: TextRun, text: Chunked) -> None:
    found = compare(source, _view(), text)
    assert found.score == found.source_score == score_head(source)
    assert found.score is not None
    assert 1500 < found.score.positions < 2048
    # The demo's head was trained with it; the one word it says most often is right about half as often.
    assert 0.35 < found.score.acceptance < 0.6
    assert found.score.chance < 0.6 * found.score.acceptance
    drafting = found.score.drafting
    assert len(drafting.acceptance) == 4
    for way in (drafting.argmax, drafting.sampled):
        assert [each.value for each in way] == sorted(each.value for each in way)
        assert 1 + drafting.acceptance[0].value == pytest.approx(drafting.argmax[0].value, abs=0.03)
        assert all(each.error and each.error < 0.1 for each in way)
    assert set(drafting.domains) == {"code", "reasoning", "chat", "tools", "prose", "multilingual"}
    assert sum(each.positions for each in drafting.domains.values()) == drafting.positions
    assert found.heads is not None
    assert found.heads.mean == found.trunk.mean == 0
    divergence, head = found.findings()
    assert divergence.check is Check.DIVERGENCE
    assert head.check is Check.MTP_HEAD
    assert divergence.status is head.status is Status.PASS


@pytest.mark.parametrize(
    "change", [_shifted, _raw, _swapped, _zeroed, _no_attention, _query_shifted], ids=lambda f: f.__name__
)
def test_a_broken_head_is_caught(source: TextRun, quantized: TextRun, text: Chunked, change: Change) -> None:
    """On the exact trunk, and on one that is quantized as well; its states are the same whatever the head."""
    for trunk in (source, quantized):
        found = compare(source, replace(trunk, view=changed(trunk.view, change)), text)
        assert found.findings()[1].status is Status.FAIL


@pytest.mark.parametrize("bits", [8, 5])
def test_a_rounded_head_is_not(source: TextRun, text: Chunked, bits: int) -> None:
    """Trunk and head in so many bits; and the head alone."""
    rounded = _rounded(2 ** (bits - 1))
    head = changed(_view(), rounded)
    for artifact in (replace(source, view=head), changed(head, rounded, Block.TRUNK)):
        finding = compare(source, artifact, text).findings()[1]
        assert finding.status is Status.PASS, finding.summary


def test_a_head_that_is_missing(source: TextRun, text: Chunked) -> None:
    found = compare(source, _view("drop"), text)
    assert found.score is None
    assert found.heads is None
    assert found.trunk.mean == 0
    finding = found.findings()[1]
    assert finding.status is Status.FAIL
    assert finding.summary == "the source has an MTP head, the artifact has none"
    with run_text(_view("drop"), text) as run, pytest.raises(InputError, match="has no MTP head"):
        score_head(run)


@pytest.mark.parametrize("change", [_raw, _swapped, _zeroed], ids=lambda f: f.__name__)
def test_without_a_source_the_worst_is_caught(source: TextRun, change: Change) -> None:
    assert judge_head(score_head(source), None).status is Status.PASS
    finding = judge_head(score_head(replace(source, view=changed(_view(), change))), None)
    assert finding.status is Status.FAIL
    assert "the same word is always drafted" in finding.summary


def test_no_head_anywhere_is_no_finding() -> None:
    (finding,) = Comparison(_number(0.0), None, None, None).findings()
    assert finding.check is Check.DIVERGENCE


def test_a_head_that_was_left_out_as_asked_for_is_no_finding() -> None:
    best = scored(0.6)
    found = Comparison(_number(0.0), None, None, best)
    assert len(found.findings(headless=True)) == 1
    assert found.findings()[1].status is Status.FAIL


def test_every_mean_has_its_error() -> None:
    trunk = replace(_number(0.01), error=0.002, same_top=0.95, same_top_error=0.01)
    score = scored(0.6, 400, 0.03)
    heads = replace(_number(0.003), error=0.0004)
    found = Comparison(trunk, heads, score, scored(0.61, 2000, 0.02))
    measured = found.measures(Measures(agreement=0.9))
    assert measured.kld is not None
    assert measured.kld.estimate == Estimate(0.01, 0.002)
    assert (measured.same_top1, measured.acceptance) == (Estimate(0.95, 0.01), Estimate(0.6, 0.03))
    assert (measured.positions, measured.drafts, measured.agreement) == (100, 400, 0.9)
    words = [finding.summary for finding in found.findings()]
    assert "0.0100 ± 0.0020 nats in the mean over 100 positions" in words[0]
    assert "95.0 ± 1.0 % of first choices the same" in words[0]
    assert "60.0 ± 3.0 % of 400 drafts" in words[1]
    assert "(61.0 ± 2.0 % in the source), 1.75 ± 0.10 tokens per verification (1.75 ± 0.10)" in words[1]
    assert ", 0.00300 ± 0.00040 nats from the source's head" in words[1]
    assert measured.head == score.drafting
    assert measured.source_head is not None
    assert measured.source_head.acceptance[0].value == 0.61


def _number(mean: float, error: float = 0.0) -> Divergence:
    zeros = dict.fromkeys(("median", "p90", "p95", "p99", "p99_9", "max", "source_loss", "loss"), 0.0)
    errors = {"error": error, "same_top_error": 0.0, "loss_error": 0.0}
    return Divergence(positions=100, mean=mean, same_top=1.0, vocabulary=10, **errors, **zeros)


def test_a_head_is_not_condemned_on_a_few_tokens() -> None:
    """What few positions leave open is not checked; what they do not is a fault."""
    trunk = _number(0.006)
    for error, positions, status in (
        (0.03, 63, Status.SKIPPED),
        (0.001, 63, Status.FAIL),
        (0.03, 1600, Status.FAIL),
    ):
        heads = replace(_number(0.045, error), positions=positions)
        found = judge_head(scored(0.6), scored(0.6), trunk=trunk, heads=heads)
        assert found.status is status, found.summary


@pytest.mark.parametrize(
    ("acceptance", "trunk", "heads", "status"),
    [
        (0.60, 0.0, 0.0, Status.PASS),
        (0.58, 0.0, 0.019, Status.PASS),
        (0.60, 0.0, 0.021, Status.FAIL),
        (0.60, 0.1, 0.31, Status.PASS),
        (0.60, 0.1, 0.33, Status.FAIL),
        (0.50, 0.01, 0.01, Status.FAIL),
        (0.54, 0.01, 0.01, Status.FAIL),
        (0.53, 0.1, 0.1, Status.PASS),
        (float("nan"), 0.0, 0.0, Status.FAIL),
        (0.60, 0.0, float("nan"), Status.FAIL),
    ],
)
def test_limits(acceptance: float, trunk: float, heads: float, status: Status) -> None:
    best = scored(0.6)
    found = Comparison(_number(trunk), _number(heads), scored(acceptance), best)
    assert found.findings()[1].status is status


@pytest.mark.parametrize("field", ["mean", "max", "loss", "source_loss", "same_top"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_none_fails(field: str, number: float) -> None:
    """Whichever it is, and whatever the mean says."""
    found = judge_divergence(replace(_number(0.0), **{field: number}))
    assert found.status is Status.FAIL
    assert "not finite" in found.summary


@pytest.mark.parametrize(("mean", "status"), [(0.9, Status.PASS), (1.1, Status.FAIL)])
def test_a_divergence_that_no_quantization_has(mean: float, status: Status) -> None:
    found = Comparison(_number(mean), None, None, None)
    assert found.findings()[0].status is status
    assert found.findings(limit=0.01)[0].status is Status.FAIL
