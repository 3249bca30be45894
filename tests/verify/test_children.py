"""The child process: whatever it does, the answer is a RuntimeFailure, and nothing of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from verify_fakes import write_llama

from qexport.children.failure import Failure, RuntimeFailure
from qexport.children.process import ChildProcess
from qexport.errors import EnvironmentProblem
from qexport.verification.client import HttpSession, parse_generation
from qexport.verification.runtime import Settings
from qexport.verification.runtimes import LlamaServer, Xllamacpp

READY = 'print(\'{"event": "ready", "facts": {"address": "http://127.0.0.1:1"}}\', flush=True)\n'


def child(code: str) -> Xllamacpp:
    return Xllamacpp([sys.executable, "-c", "import sys, os, time\nsys.stdin.readline()\n" + code])


def fails(runtime, path, limit=20.0) -> RuntimeFailure:
    with pytest.raises(RuntimeFailure) as caught:
        runtime.open(path, Settings(time_limit=limit))
    return caught.value


def test_an_aborting_child_is_told_by_its_signal_and_its_last_words(tmp_path):
    path = tmp_path / "some" / "model.gguf"
    code = f"print('ggml.c:1: GGML_ASSERT(x) failed in {path}', file=sys.stderr, flush=True)\nos.abort()\n"
    failure = fails(child(code), path)
    assert failure.kind is Failure.DIED
    assert "SIGABRT" in failure.message
    assert failure.log == ("ggml.c:1: GGML_ASSERT(x) failed in model.gguf",)  # no host paths


def test_a_child_that_exits_is_told_by_its_code(tmp_path):
    failure = fails(child("sys.exit(3)"), tmp_path / "m.gguf")
    assert failure.kind is Failure.DIED
    assert "code 3" in failure.message


def test_a_hanging_child_is_killed_with_what_it_started(tmp_path):
    note = tmp_path / "grandchild"
    code = (
        "import subprocess\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(str(other.pid))\n"
        "time.sleep(60)\n"
    )
    for limit in (2.0, 16.0):  # the second where a busy machine takes longer to start it
        started = time.monotonic()
        failure = fails(child(code), tmp_path / "m.gguf", limit=limit)
        assert failure.kind is Failure.TIMEOUT
        assert time.monotonic() - started < limit + 8
        if note.exists() and note.read_text():
            break
    deadline = time.monotonic() + 5
    while _alive(int(note.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(int(note.read_text()))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A zombie is dead: nobody may be there to reap it.
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2] != "Z"
    except OSError:
        return False


def test_a_child_that_says_it_is_ready_and_hangs_is_killed(tmp_path):
    failure = fails(child(READY + "time.sleep(60)"), tmp_path / "m.gguf", limit=1.5)
    assert failure.kind is Failure.TIMEOUT


def test_noise_before_the_answer_is_no_answer(tmp_path):
    failure = fails(child("print('[1, 2]')\nprint('hello')\n"), tmp_path / "m.gguf")
    assert failure.kind is Failure.DIED


def test_a_missing_package_names_the_extra(tmp_path):
    runtime = child('print(\'{"event": "missing", "reason": "No module"}\', flush=True)')
    with pytest.raises(EnvironmentProblem, match=r"xllamacpp\) cannot be imported") as caught:
        runtime.open(tmp_path / "m.gguf", Settings(time_limit=20))
    assert "qexport[llama]" in str(caught.value.hint)


def test_a_missing_binary_is_the_environments_problem(tmp_path):
    with pytest.raises(EnvironmentProblem, match="llama-server cannot be started"):
        LlamaServer(tmp_path / "llama-server").open(tmp_path / "m.gguf", Settings(time_limit=5))


def test_a_server_that_exits_is_told_by_its_code(tmp_path):
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\necho 'error: unknown argument' >&2\nexit 1\n")
    binary.chmod(0o755)
    failure = fails(LlamaServer(binary), tmp_path / "m.gguf")
    assert "code 1" in failure.message
    assert failure.log == ("error: unknown argument",)


@pytest.mark.parametrize(
    ("name", "words"),
    [("truncated", "not within the file bounds"), ("random", "invalid magic"), ("lost head", "not found")],
)
def test_llama_cpp_on_a_bad_file(tmp_path, name, words):
    pytest.importorskip("xllamacpp")
    path = tmp_path / "bad.gguf"
    if name == "random":
        path.write_bytes(os.urandom(50_000))
    elif name == "truncated":
        path.write_bytes(write_llama(tmp_path / "whole.gguf").read_bytes()[:-5000])
    else:
        write_llama(path, layers=1)
        _declare_more_layers(path)
    failure = fails(Xllamacpp(), path, limit=60)
    assert failure.kind in (Failure.REFUSED, Failure.DIED)
    assert any(words in line for line in failure.log), failure.log
    assert not any(str(tmp_path) in line for line in failure.log)


def _declare_more_layers(path):
    """block_count counts a layer whose tensors are not there, as a lost MTP head leaves it."""
    content = path.read_bytes()
    key = b"llama.block_count"
    at = content.index(key) + len(key) + 4
    path.write_bytes(content[:at] + (2).to_bytes(4, "little") + content[at + 4 :])


ANSWER = {
    "tokens": [5, 6, 7, 8],
    "content": "text",
    "stop_type": "limit",
    "timings": {"prompt_per_second": 10.0, "predicted_per_second": None, "draft_n": 6, "draft_n_accepted": 2},
    "completion_probabilities": [
        {
            "id": 5,
            "logprob": -0.25,
            "top_logprobs": [{"id": 5, "logprob": -0.25}, {"id": 9, "logprob": None}],
        },
        {"id": 7, "logprob": 0.0, "top_logprobs": []},
        {"id": 8, "logprob": -3.4028234663852886e38, "top_logprobs": [{"id": 8, "logprob": -1.0}]},
    ],
}


def test_an_answer_is_matched_token_by_token():
    answer = parse_generation([1], ANSWER)
    assert answer.tokens == (5, 6, 7, 8)
    assert answer.steps[0].logprob == -0.25
    assert answer.steps[0].top[1][1] != answer.steps[0].top[1][1]  # null is NaN
    assert answer.steps[1].logprob is None  # ended inside a character
    assert answer.steps[2].logprob is None  # a draft that was accepted
    assert answer.steps[3].logprob == float("-inf")
    assert (answer.tok_s, answer.draft_n, answer.draft_accepted) == (0.0, 6, 2)


@pytest.mark.parametrize("field", ["tokens", "content", "stop_type", "timings"])
def test_an_answer_without_a_promised_field_is_refused(field):
    with pytest.raises(KeyError):
        parse_generation([1], {key: value for key, value in ANSWER.items() if key != field})


def test_greedy_is_asked_for_whatever_the_file_recommends(monkeypatch):
    asked = {}

    def request(_, method, path, body, *, timeout):
        asked.update(body)
        return 200, json.dumps(ANSWER).encode()

    monkeypatch.setattr(HttpSession, "_request", request)
    process = ChildProcess([sys.executable, "-c", "input()"], what="child", time_limit=20)
    with HttpSession(process, "127.0.0.1", 1) as session:
        session.generate([1], n_predict=4, n_probs=2)
    neutral = {"temperature": 0, "top_k": 1, "min_p": 0, "repeat_penalty": 1, "presence_penalty": 0}
    neutral |= {"frequency_penalty": 0, "dry_multiplier": 0, "mirostat": 0, "xtc_probability": 0}
    assert neutral.items() <= asked.items()
    assert asked["samplers"] == ["top_k"]


def test_no_group_is_killed_twice(monkeypatch):
    process = ChildProcess([sys.executable, "-c", "input()"], what="child", time_limit=20)
    killed = []
    kill = os.killpg
    monkeypatch.setattr(os, "killpg", lambda *given: (killed.append(given), kill(*given)))
    process.kill()
    process.kill()
    assert len(killed) == 1


def test_a_server_in_the_folder_is_not_looked_up_in_path(tmp_path, monkeypatch):
    for folder, code in (("here", 4), ("path", 5)):
        binary = tmp_path / folder / "llama-server"
        binary.parent.mkdir()
        binary.write_text(f"#!/bin/sh\nexit {code}\n")
        binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path / "here")
    assert "code 4" in fails(LlamaServer(Path("./llama-server")), tmp_path / "m.gguf").message


def test_a_binary_that_is_no_program_is_the_environments_problem(tmp_path):
    binary = tmp_path / "llama-server"
    binary.write_bytes(b"\x00nothing")
    binary.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match="llama-server cannot be started: Exec format error"):
        LlamaServer(binary).open(tmp_path / "m.gguf", Settings(time_limit=20))


def _orphans(code: str, note: Path) -> list[int]:
    """Start a parent that opens a session and never gets to close it, kill it, and name what it started."""
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 20
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    pids = [int(word) for word in note.read_text().split()]
    deadline = time.monotonic() + 5
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return pids


def test_the_child_goes_with_its_parent_and_what_it_started_even_while_loading(tmp_path):
    note = tmp_path / "pid"
    engine = tmp_path / "engine.py"
    # Like xllamacpp, which loads without letting other threads run.
    load = "ctypes.PyDLL(None)" if sys.platform.startswith("linux") else "time"
    engine.write_text(
        "import ctypes, os, subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{other.pid}}')\n{load}.sleep(60)\n"
    )
    code = "from pathlib import Path\nfrom qexport.verification.runtimes import Xllamacpp\n"
    code += "from qexport.children.process import engine_command\n"
    code += "from qexport.verification.runtime import Settings\n"
    code += f"Xllamacpp(engine_command({str(engine)!r})).open(Path('m.gguf'), Settings())\n"
    assert not [pid for pid in _orphans(code, note) if _alive(pid)]


def test_the_server_goes_with_its_parent(tmp_path):
    note = tmp_path / "pid"
    binary = tmp_path / "llama-server"
    binary.write_text(f"#!/bin/sh\necho $$ > {note}\nexec sleep 60\n")
    binary.chmod(0o755)
    code = "from pathlib import Path\nfrom qexport.verification.runtimes import LlamaServer\n"
    code += "from qexport.verification.runtime import Settings\n"
    code += f"LlamaServer(Path({str(binary)!r})).open(Path('m.gguf'), Settings())\n"
    assert not [pid for pid in _orphans(code, note) if _alive(pid)]
