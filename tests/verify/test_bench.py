"""Speeds: what is counted, what is noted, what is refused; with fakes, and once for real."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from verify_fakes import generation, write_llama

from qexport.artifacts.description import Description
from qexport.children.failure import Failure, RuntimeFailure
from qexport.errors import InputError, UsageProblem
from qexport.receipt.speeds import Bench, Range, RuntimeVersion
from qexport.receipt.typed import as_json, fit
from qexport.verification import machine
from qexport.verification.bench import BenchOptions, bench
from qexport.verification.bench_subject import bench_subject
from qexport.verification.machine import this_machine
from qexport.verification.options import VerifyOptions
from qexport.verification.prompts import BENCH_PROMPTS
from qexport.verification.runtimes import LlamaServer, Xllamacpp

PATH = Path("a.gguf")
HEAD = Description(PATH, chats=True, context=4096, drafts=True)


@dataclass
class Session:
    """Answers of ``length`` tokens; the speed of the n-th answer is the n-th of ``speeds``, over and over."""

    runtime: Runtime
    n_max: int
    version: str = "1.0"
    load_s: float = 0.5
    asked: list = field(default_factory=list)

    @property
    def facts(self):
        return self.runtime.facts

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def render_chat(self, messages):
        return f"<user>{messages[0]['content']}<assistant>"

    def tokenize(self, text, *, add_special):
        return tuple(range(len(text.split()) + (7 if add_special else 0)))

    def generate(self, prompt_ids, *, n_predict, n_probs):
        if self.n_max in self.runtime.fails:
            raise RuntimeFailure(Failure.DIED, "it died")
        assert n_probs == 0  # log-probabilities cost time
        speeds = self.runtime.speeds[self.n_max]
        reads = n_predict == 1
        at = sum(1 for _, one in self.asked if one == reads)
        self.asked.append((prompt_ids, reads))
        length, speed = speeds[at % len(speeds)]
        drafted = 0 if reads else self.n_max * 10
        return generation(
            range(1 if reads else length),
            tok_s=speed,
            prompt_tok_s=1000.0 + at,
            draft_n=drafted,
            draft_accepted=drafted // 2,
            prompt_ids=tuple(prompt_ids),
        )


@dataclass
class Runtime:
    speeds: dict
    fails: tuple = ()
    name: str = "fake"
    drafts: bool = True
    facts: dict = field(default_factory=dict)
    opened: list = field(default_factory=list)
    sessions: list = field(default_factory=list)

    def open(self, model, settings):
        self.opened.append(settings)
        self.sessions.append(Session(self, settings.draft_max))
        return self.sessions[-1]


def even(speed, last=4):
    return {n_max: [(20, speed * (1 + n_max))] for n_max in range(last + 1)}


def measured(runtime, subject=HEAD, **options):
    return bench(subject, runtime, BenchOptions(**options), lambda _: None)


def test_bare_first_then_every_n_max():
    runtime = Runtime(even(10.0))
    found = measured(runtime, threads=3, time_limit=9.0).bench
    assert [settings.draft_max for settings in runtime.opened] == [0, 1, 2, 3, 4]
    assert {(settings.threads, settings.time_limit) for settings in runtime.opened} == {(3, 9.0)}
    assert [speed.n_max for speed in found.speeds] == [0, 1, 2, 3, 4]
    assert [speed.tok_s.median for speed in found.speeds] == [10, 20, 30, 40, 50]
    assert [speed.acceptance for speed in found.speeds] == [None, 0.5, 0.5, 0.5, 0.5]
    assert found.bare == found.speeds[0]
    assert found.best == found.speeds[4]
    assert (found.engine, found.threads, found.prompts) == (RuntimeVersion("fake", "1.0"), 3, 4)
    assert found.notes == ()


def test_a_warm_up_is_not_counted():
    # The first answer is a thousand times slower; after it, one for each prompt, three times.
    slow = [(20, 0.01), *[(20, 50.0)] * 12]
    found = measured(Runtime({0: slow}), n_max=0).bench
    assert found.bare is not None
    assert found.bare.tok_s == Range(50, 50, 50)


def test_a_round_is_its_tokens_over_their_time():
    # 100 tokens in 10 seconds and 10 in a tenth: 110 in 10.1, not the mean of 10 and 100.
    speeds = [(1, 1.0), *[(100, 10.0), (10, 100.0)] * 2]
    found = measured(Runtime({0: speeds}), n_max=0, prompts=("x", "y"), repeats=2).bench
    assert found.bare is not None
    assert found.bare.tok_s.median == pytest.approx(110 / 10.1, abs=1e-3)


def test_the_median_and_the_spread():
    speeds = [(9, 1.0), (9, 30.0), (9, 10.0), (9, 12.0)]
    found = measured(Runtime({0: speeds}), n_max=0, prompts=("x",), repeats=3).bench
    assert found.bare is not None
    assert found.bare.tok_s == Range(12, 10, 30)
    assert found.bare.prompt_tok_s == Range(1001, 1000, 1002)


def test_reading_is_measured_on_a_long_prompt():
    runtime = Runtime(even(10.0, 0))
    found = measured(runtime, n_max=0, prompt_tokens=300).bench
    assert {len(ids) for ids, reads in runtime.sessions[0].asked if reads} == {300}
    assert found.prompt_tokens == 300
    assert runtime.opened[0].context >= 300 + 8


def test_a_short_context_is_kept_to():
    runtime = Runtime(even(10.0, 0))
    subject = Description(PATH, context=1100)
    found = measured(runtime, subject, n_max=0, prompt_tokens=2000, n_predict=8).bench
    assert runtime.opened[0].context == 1100
    assert found.prompt_tokens == 1092


def test_answers_that_do_not_fit_are_refused():
    with pytest.raises(UsageProblem, match="do not fit into a context of 1024"):
        measured(Runtime(even(10.0)), Description(PATH, context=1024), n_predict=1020)


def test_chats_go_through_the_template_and_raw_text_gets_special_tokens():
    chat, raw = Runtime(even(10.0, 0)), Runtime(even(10.0, 0))
    whole = Description(PATH, chats=True, complete_chats=True, context=4096)
    measured(chat, whole, n_max=0, prompts=("one two",))
    measured(raw, Description(PATH, context=4096), n_max=0, prompts=("one two",))
    assert len(chat.sessions[0].asked[0][0]) == 2
    assert len(raw.sessions[0].asked[0][0]) == 9


@pytest.mark.parametrize(
    ("subject", "drafts", "facts", "note"),
    [
        (Description(PATH, context=4096), True, {}, "without MTP only: there is no MTP head"),
        (HEAD, False, {}, "without MTP only: fake does not run MTP heads"),
        (HEAD, True, {"no_drafts": "the CPU build cannot"}, "the CPU build cannot"),
    ],
)
def test_why_there_is_no_mtp_is_noted(subject, drafts, facts, note):
    found = measured(Runtime(even(10.0), drafts=drafts, facts=facts), subject)
    assert [speed.n_max for speed in found.bench.speeds] == [0]
    assert found.bench.notes == (note,)
    assert found.failures == ()


def test_a_failure_with_mtp_leaves_the_other_figures():
    found = measured(Runtime(even(10.0), fails=(2,)))
    assert [speed.n_max for speed in found.bench.speeds] == [0, 1, 3, 4]
    assert [failure.message for failure in found.failures] == ["it died"]
    assert found.bench.notes == ("n-max 2: it died",)


def test_a_failure_without_mtp_is_one():
    with pytest.raises(RuntimeFailure, match="it died"):
        measured(Runtime(even(10.0), fails=(0,)))


def test_answers_without_time_are_no_speed():
    with pytest.raises(RuntimeFailure, match="too short to be timed"):
        measured(Runtime({0: [(1, 0.0)]}), n_max=0)


def test_a_bench_survives_json():
    found = measured(Runtime(even(10.0), fails=(3,))).bench
    assert fit(Bench, json.loads(json.dumps(found.to_json())), "bench", []) == found
    assert found.way.startswith("fake 1.0, threads by its own choice, on ")
    assert replace(found, threads=1).way.startswith("fake 1.0, 1 thread, on ")


def test_the_machine_is_said_and_the_host_is_not(monkeypatch):
    import getpass
    import socket

    monkeypatch.setattr(
        machine, "_said", lambda command: "Some GPU\nSome GPU\n" if "nvidia-smi" in command else ""
    )
    found = this_machine()
    assert found.processors >= 1
    assert found.gpu == "2 x Some GPU"
    words = json.dumps(as_json(found)).lower()
    assert socket.gethostname().lower() not in words
    assert f"/{getpass.getuser()}" not in words


def test_a_program_that_is_not_there_says_nothing():
    assert machine._said(["qexport-has-no-such-program"]) == ""
    assert machine._said(["false"]) == ""


class TestSubject:
    def test_a_gguf_is_run_by_llama_cpp(self, tmp_path):
        path = write_llama(tmp_path / "a.gguf", template="{{ x }}")
        subject, runtime = bench_subject(path, VerifyOptions())
        assert (subject.path, subject.context, subject.drafts, subject.chats) == (path, 512, False, True)
        assert isinstance(runtime, Xllamacpp)
        assert isinstance(bench_subject(path, VerifyOptions(llama_server=path))[1], LlamaServer)

    def test_a_gguf_is_not_run_by_others(self, tmp_path):
        path = write_llama(tmp_path / "a.gguf")
        with pytest.raises(UsageProblem, match="vllm does not run GGUF files"):
            bench_subject(path, VerifyOptions(runtime="vllm"))

    def test_folders_need_a_runtime_that_serves_them(self, zoo, tmp_path):
        folder = zoo("qwen3_5_text")
        with pytest.raises(UsageProblem, match="served by vLLM, which is not named"):
            bench_subject(folder, VerifyOptions())
        with pytest.raises(UsageProblem, match="says nothing of the artifact"):
            bench_subject(folder, VerifyOptions(runtime="transformers"))
        with pytest.raises(UsageProblem, match="mlx-lm does not read this layout"):
            bench_subject(folder, VerifyOptions(runtime="mlx-lm"))
        with pytest.raises(UsageProblem, match="is no GGUF file"):
            bench_subject(folder, VerifyOptions(llama_server=tmp_path / "x"))
        subject, runtime = bench_subject(folder, VerifyOptions(runtime_python=tmp_path / "python"))
        assert runtime.name == "vllm"
        assert subject.complete_chats

    def test_what_is_no_artifact_is_refused(self, tmp_path):
        (tmp_path / "a.gguf").write_bytes(b"no")
        with pytest.raises(InputError):
            bench_subject(tmp_path / "a.gguf", VerifyOptions())


def test_prompts_are_several():
    assert len(set(BENCH_PROMPTS)) == len(BENCH_PROMPTS) >= 3


@pytest.mark.slow
def test_llama_cpp_on_the_demo_model(tmp_path):
    """A head that drafts: exported from the demo model, timed by the real llama.cpp."""
    pytest.importorskip("xllamacpp")
    from qexport.demo import MODEL
    from qexport.formats.gguf.options import GgufOptions
    from qexport.recipe.choice import ModelChoice
    from qexport.run import steps
    from qexport.run.model import examine
    from qexport.run.target import Target, plan

    diagnosis = examine(ModelChoice(str(MODEL)), download=False)
    items = plan([Target(GgufOptions(("Q8_0",), no_mmproj=True), tmp_path, verify=None)], diagnosis)
    (item,) = steps.write(items, diagnosis)
    subject, runtime = bench_subject(item.path, VerifyOptions())
    options = BenchOptions(n_max=2, n_predict=16, repeats=2, prompt_tokens=64, threads=1)
    found = bench(subject, runtime, options, lambda _: None)
    assert found.failures == ()
    assert [speed.n_max for speed in found.bench.speeds] == [0, 1, 2]
    for speed in found.bench.speeds:
        assert 0 < speed.tok_s.low <= speed.tok_s.median <= speed.tok_s.high
        assert speed.prompt_tok_s is not None
        assert speed.prompt_tok_s.low > 0
        assert (speed.drafted > 0) == (speed.n_max > 0)
        assert speed.accepted <= speed.drafted
    assert found.bench.speeds[1].acceptance > 0.3
