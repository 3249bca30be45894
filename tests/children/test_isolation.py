"""What a child may import, see and take; and what our own command imports from where the user is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qexport.children.environment import child_environment, search_path
from qexport.children.failure import Failure, RuntimeFailure
from qexport.children.process import ChildProcess, engine_command
from qexport.verification.folder_runtimes import ENGINES, FolderRuntime
from qexport.verification.runtime import Settings
from qexport.verification.runtimes import LlamaServer, Xllamacpp

TOKENS = {
    "HF_TOKEN": "hf_planted",
    "HUGGING_FACE_HUB_TOKEN": "hf_planted",
    "AWS_SECRET_ACCESS_KEY": "planted",
    "AWS_SESSION_TOKEN": "planted",
    "GOOGLE_APPLICATION_CREDENTIALS": "/planted",
    "AZURE_CLIENT_SECRET": "planted",
    "OPENAI_API_KEY": "planted",
    "VLLM_API_KEY": "planted",
    "NVIDIA_API_KEY": "planted",
    "GITHUB_TOKEN": "planted",
    "DATABASE_PASSWORD": "planted",
    "HF_TOKEN_PATH": "/planted",
    "LLAMA_ARG_HF_TOKEN": "planted",
    "SOMETHING_NOBODY_KNOWS": "planted",
    "PYTHONSTARTUP": "/planted",
    "GGML_BACKEND_PATH": "/planted",
}
# What a model's folder may hold, for every name that a child imports.
NAMES = ("xllamacpp", "transformers", "mlx_lm", "vllm", "sglang", "torch", "json", "queue", "jinja2", "numpy")

ENGINE = """
import os, sys
class Loaded:
    version = "1"
    def __init__(self, request):
        self.facts = {
            "env": dict(os.environ), "path": sys.path, "cwd": os.getcwd(), "home": os.path.expanduser("~"),
            "here": os.listdir("."), "isolated": sys.flags.isolated, "safe": sys.flags.safe_path,
            "core": __import__("resource").getrlimit(4)[0],
        }
    def grow(self, count):
        self.held = b"x" * count
        return len(self.held)
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The current folder is a model's, with a module of every name in it; tokens are everywhere."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    for package in ("", "qexport", "site-packages"):
        (folder / package).mkdir(parents=True, exist_ok=True)
    code = f"open({str(ran)!r}, 'a').write(__name__ + '\\n')\n"
    for name in (*NAMES, "sitecustomize", "usercustomize", "click"):
        (folder / f"{name}.py").write_text(code)
    (folder / "qexport" / "__init__.py").write_text(code)
    home = tmp_path / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text("hf_planted")
    for key, value in {**TOKENS, "HOME": str(home)}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}.{os.pathsep}")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{os.pathsep}.{os.pathsep}/opt/lib")
    monkeypatch.chdir(folder)
    return folder, ran


def test_a_child_sees_nothing_of_ours(hostile, tmp_path):
    folder, ran = hostile
    engine = tmp_path / "engine.py"
    engine.write_text(ENGINE)
    process = ChildProcess(
        engine_command(str(engine)), what="it", time_limit=60, request={"model": str(folder)}
    )
    facts = process.ready("")["facts"]
    process.kill()
    assert "planted" not in json.dumps(facts)
    assert (facts["isolated"], facts["safe"], facts["core"], facts["here"]) == (1, True, 0, [])
    assert facts["env"]["LD_LIBRARY_PATH"] == "/opt/lib"
    assert {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}.items() <= facts["env"].items()
    assert facts["home"] == facts["cwd"] != os.environ["HOME"]
    assert facts["cwd"].endswith("home")
    assert not [part for part in facts["path"] if not part or Path(part).is_relative_to(tmp_path)]
    assert not ran.exists()
    assert not Path(facts["cwd"]).exists()  # it went with the child


@pytest.mark.parametrize("name", ["xllamacpp", *ENGINES])
def test_no_runtime_is_imported_from_beside_the_model(hostile, name):
    """The real commands, each over a folder that is no model: whatever they say, nothing in it has run."""
    folder, ran = hostile
    runtime = Xllamacpp() if name == "xllamacpp" else FolderRuntime(ENGINES[name])
    with pytest.raises(Exception, match=r"imported|could not load|cannot run|ended"):
        runtime.open(folder / "m.gguf" if name == "xllamacpp" else folder, Settings(time_limit=120))
    assert not ran.exists()


def test_a_server_of_the_user_gets_no_tokens_either(hostile, tmp_path):
    binary = tmp_path / "llama-server"
    binary.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\npwd >> {tmp_path}/seen\nexit 1\n")
    binary.chmod(0o755)
    with pytest.raises(RuntimeFailure, match="code 1"):
        LlamaServer(binary).open(hostile[0] / "m.gguf", Settings(time_limit=20))
    seen = (tmp_path / "seen").read_text()
    assert "HF_HUB_OFFLINE=1" in seen
    assert "planted" not in seen
    assert str(hostile[0]) not in seen


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_child_that_takes_too_much_memory_is_told_so(tmp_path):
    engine = tmp_path / "engine.py"
    engine.write_text(ENGINE)
    process = ChildProcess(
        engine_command(str(engine)), what="it", time_limit=60, memory_limit=150_000_000, request={}
    )
    process.ready("")
    assert process.ask("grow", count=1000) == 1000

    def grow():
        process.ask("grow", count=400_000_000)
        process.wait_until(lambda: None)  # it may answer before it is looked at

    with pytest.raises(RuntimeFailure, match=r"taken 0\.\d+ GB of memory; the limit was 0\.15") as caught:
        grow()
    process.kill()
    assert caught.value.kind is Failure.LACKING


def test_one_call_that_takes_too_long(tmp_path):
    process = ChildProcess([sys.executable, "-c", "import time; time.sleep(60)"], what="it", time_limit=60)
    with pytest.raises(RuntimeFailure, match=r"killed after 0\.2 seconds"):
        process.ask("wait", within=0.2)


def test_only_what_is_named_passes():
    given = {**TOKENS, "PATH": "/bin::.:bin:/usr/bin", "OMP_NUM_THREADS": "3", "LD_PRELOAD": "/x.so"}
    found = child_environment(Path("/h"), given)
    assert (found["PATH"], found["OMP_NUM_THREADS"], found["HOME"]) == ("/bin:/usr/bin", "3", "/h")
    assert not (set(TOKENS) | {"LD_PRELOAD"}) & set(found)
    assert search_path("") == ""


@pytest.mark.parametrize("command", [["-m", "qexport"], ["-c", "from qexport.cli.main import main; main()"]])
def test_our_own_command_imports_nothing_from_the_current_folder(tmp_path, command):
    """PYTHONPATH has it in it, as some shells' start-up files make it: `:$PYTHONPATH`."""
    ran = tmp_path / "ran"
    for name in ("torch", "numpy", "yaml", "tokenizers", "transformers", "jinja2", "huggingface_hub"):
        (tmp_path / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write(__name__)\n")
    (tmp_path / "config.json").write_text("{}")
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, *command, "inspect", "."],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert not ran.exists()


def test_a_folder_that_tells_numba_what_to_run_is_refused(tmp_path):
    (tmp_path / ".numba_config.yaml").write_text("cache_dir: here\n")
    code = "import qexport.codecs.jit"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "decides what code numba runs" in done.stderr
