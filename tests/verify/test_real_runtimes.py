"""Real llama.cpp on a file written here: in the wheel, and in a llama-server where there is one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from oracle import toolchain
from verify_fakes import FakeReference, tokenizer_json, write_llama

from qexport.families.view import ModelView
from qexport.receipt.verification import Check, Status
from qexport.verification.options import VerifyOptions
from qexport.verification.run import verify
from qexport.verification.runtime import Settings
from qexport.verification.runtimes import LlamaServer, Xllamacpp

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
OPTIONS = VerifyOptions(threads=1, n_predict=16, time_limit=120)

pytestmark = pytest.mark.slow


def _xllamacpp():
    pytest.importorskip("xllamacpp")
    return Xllamacpp()


def _llama_server():
    named = os.environ.get("QEXPORT_LLAMA_SERVER") or shutil.which("llama-server")
    if named is None and not toolchain.has_tool("llama-server"):
        pytest.skip("no llama-server in PATH or QEXPORT_LLAMA_SERVER (make test-toolchain COMPILE=1)")
    return LlamaServer(Path(named) if named else toolchain.tool("llama-server"))


@pytest.fixture(
    params=[
        pytest.param(_xllamacpp, id="xllamacpp"),
        pytest.param(_llama_server, id="llama-server", marks=pytest.mark.toolchain),
    ]
)
def runtime(request):
    return request.param()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("real") / "tiny-F32.gguf", template=TEMPLATE)


def test_a_session_gives_all_that_is_promised(runtime, model):
    with runtime.open(model, Settings(threads=1, context=256, time_limit=120)) as session:
        assert session.version
        assert session.load_s > 0
        assert session.render_chat([{"role": "user", "content": "Hi"}]) == "[user] Hi\n[assistant]"
        ids = session.tokenize("hello<|end|>", add_special=False)
        assert ids[-1] == 319
        answer = session.generate(ids[:-1], n_predict=12, n_probs=4)
        again = session.generate(ids[:-1], n_predict=12, n_probs=0)
    assert len(answer.tokens) == 12
    assert answer.stop == "limit"
    known = [step for step in answer.steps if step.logprob is not None]
    assert known
    for step in known:  # greedy: the likeliest token, with its own log-probability among the alternatives
        assert step.top[0] == (step.token, step.logprob)
        assert len(step.top) == 4
    assert again.tokens == answer.tokens
    assert again.tok_s > 0


def test_a_good_file_passes_and_its_tokens_are_the_sources(runtime, model):
    view = ModelView(
        "llama", "tiny", {}, {}, (), layers=2, mtp_layers=0, files={"tokenizer.json": tokenizer_json()}
    )
    options = VerifyOptions(threads=1, n_predict=16, time_limit=120, reference=False)
    report = verify(model, view=view, options=options, runtime=runtime)
    for check in (Check.FILE, Check.LOADS, Check.TEMPLATE, Check.GENERATES, Check.FINITE, Check.TOKENS):
        finding = report.finding(check)
        assert finding is not None
        assert finding.status is Status.PASS, finding
    assert Check.AGREEMENT in report.unverified


def test_nan_weights_are_found(runtime, tmp_path):
    path = write_llama(tmp_path / "nan.gguf", nan=True)
    report = verify(path, view=None, options=OPTIONS, runtime=runtime, reference=FakeReference())
    assert not report.passed
    found = {finding.check for finding in report.failures}
    assert found & {Check.FINITE, Check.GENERATES}


def test_a_head_that_is_declared_but_not_there(runtime, tmp_path):
    """Plain llamas have no MTP in llama.cpp: it loads, and says no when asked to draft."""
    path = write_llama(tmp_path / "declared.gguf", nextn=1, head=False)
    report = verify(path, view=None, options=OPTIONS, runtime=runtime)
    failed = {finding.check for finding in report.failures}
    assert Check.FILE in failed
    assert failed & {Check.LOADS, Check.MTP_LOADS}
