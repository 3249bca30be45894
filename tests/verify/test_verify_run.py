"""The whole verification against a runtime that says what it is told to."""

from __future__ import annotations

import json

import pytest
from verify_fakes import (
    FakeReference,
    FakeRuntime,
    FakeSession,
    generation,
    scored,
    tokenizer_json,
    write_llama,
)

from qexport.children.failure import Failure, RuntimeFailure
from qexport.errors import InputError, UsageProblem
from qexport.families.view import ModelView
from qexport.receipt.measures import Drafts
from qexport.receipt.verification import Check, Status
from qexport.verification import steps as steps_module
from qexport.verification.memory import Fit
from qexport.verification.options import VerifyOptions
from qexport.verification.run import verify
from qexport.verification.table import describe, render, rows

PLAIN = [generation(range(24)), generation(range(30, 54)), generation(tok_s=50.0)]
MTP = [
    generation(range(24), draft_n=30, draft_accepted=20),
    generation(range(30, 54), draft_n=30, draft_accepted=10),
    generation(tok_s=80.0, draft_n=9, draft_accepted=9),
]


@pytest.fixture
def plain_file(tmp_path):
    return write_llama(tmp_path / "tiny-F32.gguf")


@pytest.fixture
def mtp_file(tmp_path):
    return write_llama(tmp_path / "tiny-F32.gguf", nextn=1, template="{{ messages }}")


def view(**fields) -> ModelView:
    given = {"family": "llama", "label": "tiny", "config": {}, "text": {}, "tensors": (), "layers": 2}
    return ModelView(**{**given, "mtp_layers": 0, **fields})


def test_everything_checked_and_passed(mtp_file):
    runtime = FakeRuntime(PLAIN, MTP)
    said: list[str] = []
    report = verify(mtp_file, view=None, runtime=runtime, reference=FakeReference(), progress=said.append)
    assert report.passed
    assert report.failures == ()
    assert report.unverified == (Check.TOKENS, Check.ENDS, Check.TEMPLATE_KEPT)
    assert report.verdict == "passed, without tokens, ends, template_kept"
    assert report.drafts == Drafts(60, 30, 2)
    assert "tok_s" not in json.dumps(report.to_json())
    assert [settings.draft_max for settings in runtime.opened] == [0, 3]
    assert any("loading again with MTP" in words for words in said)
    json.dumps(report.to_json(), allow_nan=False)


def test_a_file_without_a_head_is_run_once_and_says_nothing_of_mtp(plain_file):
    runtime = FakeRuntime(PLAIN)
    report = verify(plain_file, view=None, runtime=runtime, reference=FakeReference())
    assert len(runtime.opened) == 1
    assert report.passed
    assert report.finding(Check.MTP_LOADS) is None
    assert report.drafts is None


def test_a_head_that_is_declared_but_not_there_fails(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf", nextn=1, head=False)
    report = verify(path, view=None, runtime=FakeRuntime(PLAIN, MTP), reference=FakeReference())
    assert report.verdict == "failed: file"
    assert "holds no tensors of it" in report.failures[0].summary


def test_a_lost_head_is_said(plain_file):
    report = verify(plain_file, view=view(mtp_layers=1), runtime=FakeRuntime(PLAIN))
    finding = report.finding(Check.MTP_LOADS)
    assert finding is not None
    assert finding.status is Status.SKIPPED
    assert "the file has none" in finding.summary


def test_broken_mtp_fails_the_file(mtp_file):
    broken = [generation(range(24), draft_n=250, draft_accepted=3), generation(range(60, 84)), generation()]
    report = verify(mtp_file, view=None, runtime=FakeRuntime(PLAIN, broken), reference=FakeReference())
    assert not report.passed
    # How much was accepted over two prompts is said, and judges nothing.
    assert "3 of 250 drafted tokens accepted over 2 prompts" in report.finding(Check.MTP_ACCEPTANCE).summary
    assert report.verdict == "failed: mtp_text"


def test_disagreement_fails_the_file(plain_file):
    report = verify(plain_file, view=None, runtime=FakeRuntime(PLAIN), reference=FakeReference(gap=1.5))
    assert report.verdict == "failed: agreement"


def test_a_source_that_does_not_fit_is_not_verified_with_the_numbers(plain_file, monkeypatch):
    monkeypatch.setattr(
        steps_module, "fit", lambda _: Fit(parameters=27_000_000_000, available=16_000_000_000)
    )
    report = verify(plain_file, view=view(), runtime=FakeRuntime(PLAIN))
    finding = report.finding(Check.AGREEMENT)
    assert finding is not None
    assert finding.status is Status.SKIPPED
    assert finding.summary == "the source needs about 70.2 GB in bf16, 16.0 GB are free"
    assert Check.AGREEMENT not in report.verified
    assert "without weights, tokens, ends, agreement" in report.verdict


def test_a_runtime_that_dies_while_loading_is_a_finding(plain_file):
    died = RuntimeFailure(Failure.DIED, "it was ended by SIGABRT", log=["GGML_ASSERT(false)"])
    report = verify(plain_file, view=None, runtime=FakeRuntime(refuse=died))
    assert report.verdict == "failed: loads"
    assert any("| GGML_ASSERT(false)" in line for line in describe(report))


def test_a_runtime_that_dies_while_generating_is_a_finding(mtp_file):
    late = RuntimeFailure(Failure.TIMEOUT, "killed after 5 seconds")
    report = verify(mtp_file, view=None, runtime=FakeRuntime(PLAIN, failure=late))
    assert report.verdict == "failed: generates"
    assert report.finding(Check.LOADS).status is Status.PASS
    assert report.finding(Check.MTP_LOADS).status is Status.SKIPPED


def test_nothing_made_is_nothing_passed(tmp_path):
    path = tmp_path / "mtp-tiny.gguf"
    write_llama(path, layers=0, nextn=1)
    report = verify(path, view=None, runtime=FakeRuntime())
    assert not report.passed
    assert report.verdict == "not run"


def test_tokens_are_compared_with_the_sources(plain_file):
    report = verify(
        plain_file,
        view=view(files={"tokenizer.json": tokenizer_json()}),
        runtime=FakeRuntime(PLAIN),
        reference=FakeReference(),
    )
    assert report.verdict == "failed: tokens"  # the fake cuts into bytes


def test_prompts_of_the_user_are_asked(plain_file):
    runtime = FakeRuntime([generation(), generation(tok_s=9.0)])
    report = verify(plain_file, view=None, runtime=runtime, options=VerifyOptions(prompts=("Why?",)))
    assert len(report.texts) == 1


def test_a_prompt_that_does_not_fit_is_bad_usage(plain_file):
    options = VerifyOptions(context=50, n_predict=600)
    with pytest.raises(UsageProblem, match="into a context of 512"):  # all that the model has
        verify(plain_file, view=None, runtime=FakeRuntime(PLAIN), options=options)


@pytest.mark.parametrize(
    ("asked", "n_predict", "prompt", "given"),
    [
        (50, 48, "Why?", 1280),
        (2048, 48, "Why?", 2048),
        (2048, 1500, "Why?", 2560),
        (100, 48, "x" * 9000, 8192),
    ],
)
def test_the_context_grows_with_the_prompts(tmp_path, asked, n_predict, prompt, given):
    path = write_llama(tmp_path / "tiny-F32.gguf", context_length=8192)
    runtime = FakeRuntime([generation(), generation(tok_s=9.0)])
    options = VerifyOptions(prompts=(prompt,), context=asked, n_predict=n_predict)
    verify(path, view=None, runtime=runtime, options=options)
    assert [settings.context for settings in runtime.opened] == [given]


def test_a_template_may_trim_the_prompt(mtp_file, monkeypatch):
    monkeypatch.setattr(FakeSession, "render_chat", lambda _, messages: f"<{messages[0]['content'].strip()}>")
    runtime = FakeRuntime([generation(), generation(tok_s=9.0)])
    options = VerifyOptions(prompts=(" Why? \n",), mtp=False)
    report = verify(mtp_file, view=None, runtime=runtime, options=options)
    assert report.finding(Check.TEMPLATE).status is Status.PASS


def test_a_senseless_shard_name_is_a_finding(tmp_path):
    path = write_llama(tmp_path / "x-00001-of-00000.gguf")
    report = verify(path, view=None, runtime=FakeRuntime(PLAIN), reference=FakeReference())
    assert report.verdict == "failed: file"
    assert "no shard 00001 of 00000" in report.failures[0].summary


def test_a_missing_file_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        verify(tmp_path / "none.gguf", view=None)


def test_the_table(mtp_file):
    good = verify(mtp_file, view=None, runtime=FakeRuntime(PLAIN, MTP), reference=FakeReference())
    bad = verify(mtp_file, view=None, runtime=FakeRuntime(refuse=RuntimeFailure(Failure.DIED, "died")))
    size = f"{good.size / 1000:.0f} kB"
    bits = f"{good.bits_per_weight:.2f}"
    assert rows([good, bad]) == [
        [
            "tiny-F32.gguf",
            size,
            bits,
            "-",
            "-",
            "-",
            "30 of 60",
            "passed, without the chat format",
        ],
        ["tiny-F32.gguf", size, bits, "-", "-", "-", "-", "failed: running"],
    ]
    table = render([good, bad], width=140)
    assert "same top-1" in table
    assert "failed: running" in table


def test_a_loop_the_source_shares_passes(plain_file):
    loop = generation((9,) * 24, "the the")
    report = verify(plain_file, view=None, runtime=FakeRuntime([loop, loop, loop]), reference=FakeReference())
    assert report.passed
    assert scored((9,))[0].gap == 0
