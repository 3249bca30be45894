"""Children that hold runtimes of folders: misbehaving ones, and the real program around an engine made up."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qexport.children.failure import Failure, RuntimeFailure
from qexport.children.process import PROGRAMS
from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.verification.folder_runtimes import ENGINES, EngineProgram, FolderRuntime, folder_runtime
from qexport.verification.runtime import Settings

CHILD = PROGRAMS / "child.py"
READY = {"event": "ready", "version": "1.2", "load_s": 0.5, "facts": {"strict": True}}
SETTINGS = Settings(time_limit=20.0)


def says(*lines: object) -> str:
    return "".join(f"print({json.dumps(line)!r}, flush=True)\n" for line in lines)


def child(code: str, name: str = "vllm") -> FolderRuntime:
    start = "import sys, os, time, json\nsys.stdin.readline()\n"
    return FolderRuntime(ENGINES[name], command=[sys.executable, "-c", start + code])


def fails(runtime: FolderRuntime, path: Path, settings: Settings = SETTINGS) -> RuntimeFailure:
    with pytest.raises(RuntimeFailure) as caught, runtime.open(path, settings) as session:
        session.tokenize("x", add_special=False)
    return caught.value


def test_an_aborting_child_is_told_by_its_signal_and_its_last_words(tmp_path):
    path = tmp_path / "some" / "model"
    code = f"print('RuntimeError in {path}/a.safetensors', file=sys.stderr, flush=True)\nos.abort()\n"
    failure = fails(child(code), path)
    assert failure.kind is Failure.DIED
    assert "SIGABRT" in failure.message
    assert failure.log == ("RuntimeError in model/a.safetensors",)


def test_a_hanging_child_is_killed(tmp_path):
    started = time.monotonic()
    for code in ("time.sleep(60)", says(READY) + "time.sleep(60)"):
        assert fails(child(code), tmp_path, Settings(time_limit=1.0)).kind is Failure.TIMEOUT
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"id": 1, "result": "text"}, Failure.NONSENSE),
        ({"id": 2, "result": [1]}, Failure.NONSENSE),
        ({"result": [1]}, Failure.NONSENSE),
        ({"id": 1}, Failure.NONSENSE),
        ({"id": 1, "error": "KeyError: x"}, Failure.REFUSED),
    ],
)
def test_answers_that_are_none(tmp_path, answer, kind):
    noise = "print('a log line')\nprint('[1]')\n"
    failure = fails(child(noise + says(READY) + noise + says(answer) + "time.sleep(60)"), tmp_path)
    assert failure.kind is kind


def test_a_start_that_says_nothing_is_nonsense(tmp_path):
    assert fails(child(says({"event": "ready"}) + "time.sleep(60)"), tmp_path).kind is Failure.NONSENSE


def test_a_refused_folder_and_a_missing_package(tmp_path):
    failure = fails(child(says({"event": "refused", "reason": f"no {tmp_path}/config.json"})), tmp_path)
    assert (failure.kind, failure.message) == (Failure.REFUSED, "vllm could not load it: no config.json")
    runtime = child(says({"event": "missing", "reason": "No module named 'mlx_lm'"}), "mlx-lm")
    with pytest.raises(EnvironmentProblem, match="mlx-lm cannot be imported") as caught:
        runtime.open(tmp_path, SETTINGS)
    assert "qexport[mlx]" in str(caught.value.hint)


@pytest.mark.parametrize(
    "reason",
    [
        "ValueError: Failed to find a kernel that can implement the ScaledMM linear layer. Reasons: AMX",
        "ValueError: Forced NVFP4 kernel MarlinNvFp4LinearKernel is not supported: Marlin FP4 not available",
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
    ],
)
def test_what_the_machine_lacks_says_nothing_of_the_folder(tmp_path, reason):
    failure = fails(child(says({"event": "refused", "reason": reason})), tmp_path)
    assert failure.kind is Failure.LACKING
    assert failure.message.startswith("vllm cannot run it on this machine: ")


def test_tensors_that_sglang_only_warns_of_refuse_the_folder(tmp_path):
    code = "print('Parameter mtp.fc.weight not found in params_dict', file=sys.stderr, flush=True)\n"
    code += says(READY) + "time.sleep(60)"
    failure = fails(child(code, "sglang"), tmp_path)
    assert failure.kind is Failure.REFUSED
    assert "left 1 tensor out" in failure.message
    with child(code, "vllm").open(tmp_path, SETTINGS) as session:  # which raises where that matters
        assert session.facts == {"strict": True}


def test_another_python_gets_neither_our_path_nor_the_hub(tmp_path, monkeypatch):
    python = tmp_path / "env" / "python"
    python.parent.mkdir()
    python.write_text(
        f"#!/bin/sh\nread line\nenv > {tmp_path}/seen\necho '{json.dumps(READY)}'\nread line\n", "utf-8"
    )
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with folder_runtime("vllm", python).open(tmp_path, Settings(time_limit=20, threads=3)) as session:
        assert session.version == "1.2"
    seen = (tmp_path / "seen").read_text().splitlines()
    assert {"HF_HUB_OFFLINE=1", "OMP_NUM_THREADS=3"} <= set(seen)
    assert not [line for line in seen if line.startswith("PYTHONPATH")]


def test_a_python_that_is_not_there_or_is_none(tmp_path):
    with pytest.raises(EnvironmentProblem, match="no such file as python"):
        folder_runtime("vllm", tmp_path / "python").open(tmp_path, SETTINGS)
    (tmp_path / "python").write_bytes(b"\x00nothing")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(EnvironmentProblem, match="vllm cannot be started: Exec format error"):
        folder_runtime("vllm", tmp_path / "python").open(tmp_path, SETTINGS)


def test_an_unknown_runtime_is_bad_usage():
    with pytest.raises(UsageProblem, match="no runtime 'llama'"):
        folder_runtime("llama")


ENGINE = """
import sys
print("loading", file=sys.stdout)

class Loaded:
    version = "0.1"
    facts = {"strict": True}
    def __init__(self, request):
        self.request = request
        if request["model"].endswith("broken"):
            raise KeyError("layers.0.weight")
        if request["model"].endswith("needs"):
            import no_such_package
    def render_chat(self, messages):
        return "<" + messages[0]["content"] + ">"
    def tokenize(self, text, add_special):
        print("tokenizing")
        return [int(add_special), *text.encode()]
    def generate(self, ids, n_predict, n_probs):
        steps = [[7, -0.5, [[7, -0.5], [8, float("nan")]]], [9, None, []]]
        return {"steps": steps, "text": "ab", "stop": "limit", "tok_s": 12.5}
    def score(self, ids, start, top):
        if start == 2:
            raise ValueError("cannot score\\n  that")
        return [[token, -1.0, []] for token in ids[start:]]
"""


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "engine.py"
    path.write_text(ENGINE)
    return lambda *first: FolderRuntime(
        EngineProgram("engine", str(path), "pip install it"), first=[tmp_path / name for name in first]
    )


def test_a_session_with_the_real_program(engine, tmp_path):
    with engine().open(tmp_path / "model", SETTINGS) as session:
        assert (session.version, session.facts) == ("0.1", {"strict": True})
        assert session.load_s >= 0
        assert session.render_chat([{"role": "user", "content": "Größe"}]) == "<Größe>"
        assert session.tokenize("a\nb", add_special=True) == (1, 97, 10, 98)
        answer = session.generate([1, 2], n_predict=4, n_probs=2)
        assert (answer.tokens, answer.text, answer.tok_s) == ((7, 9), "ab", 12.5)
        assert math.isnan(answer.steps[0].top[1][1])
        assert answer.steps[1].logprob is None
        assert [step.token for step in session.score([1, 2, 3], 1)] == [2, 3]
        with pytest.raises(RuntimeFailure, match="could not score: ValueError: cannot score that"):
            session.score([1, 2, 3], 2)
        with pytest.raises(ValueError, match="start is 0"):
            session.score([1], 0)
        assert session.tokenize("", add_special=False) == (0,)  # an error does not end it


@pytest.mark.parametrize(("name", "kind"), [("broken", Failure.REFUSED), ("needs", None)])
def test_what_stops_loading(engine, tmp_path, name, kind):
    expected = EnvironmentProblem if kind is None else RuntimeFailure
    with pytest.raises(expected) as caught:
        engine().open(tmp_path / name, SETTINGS)
    assert ("no_such_package" if kind is None else "KeyError: 'layers.0.weight'") in str(caught.value)


def test_files_named_first_run_first(engine, tmp_path):
    (tmp_path / "before.py").write_text(
        "import sys, types\nsys.modules['no_such_package'] = types.ModuleType('x')\n"
    )
    with engine("before.py").open(tmp_path / "needs", SETTINGS) as session:
        assert session.version == "0.1"


def test_the_program_leaves_when_its_input_ends(engine, tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    command = [sys.executable, str(CHILD), str(tmp_path / "engine.py"), str(tmp_path / "slow.py")]
    started = time.monotonic()
    subprocess.run(command, input=b'{"model": "m"}\n', check=True, timeout=30)
    assert time.monotonic() - started < 20


def test_the_programs_import_nothing_of_ours():
    for path in CHILD.parent.glob("*.py"):
        assert "qexport" not in [
            word for line in path.read_text().splitlines() if "import " in line for word in line.split()
        ], path.name
