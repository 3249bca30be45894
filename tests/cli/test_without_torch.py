"""A plain `pip install qexport`: looking, planning, reporting and publishing need no extra."""

import json
import os
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "publish"))
from exported_folders import export, gguf

from qexport.checkpoint.hub_errors import hub_http
from qexport.errors import EnvironmentProblem
from qexport.optional import EXTRAS, WEIGHTS
from qexport.run.bench import Timed, check_timed

_PROGRAM = f"""
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted([*EXTRAS, "llvmlite"])}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from click.testing import CliRunner
from qexport.cli.main import cli, of_the_machine

for line in sys.stdin:
    ran = CliRunner().invoke(cli, json.loads(line), catch_exceptions=True)
    error = ran.exception
    known = error if hasattr(error, "hint") else error and of_the_machine(error)
    said = None if known is None else [known.message, known.hint, int(known.exit_code)]
    print(json.dumps([ran.exit_code, ran.output[-300:], said, repr(error)]), flush=True)
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Commands run in one process that finds no extra; each answers (exit code, output, error)."""
    folder = tmp_path_factory.mktemp("plain")
    child = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], cwd=folder, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip

    def call(*words):
        child.stdin.write(json.dumps([*map(str, words)]) + "\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    yield call
    child.stdin.close()
    child.wait()
    child.stdout.close()


def test_what_needs_no_weights(plain, zoo, tmp_path):
    model = zoo("qwen3_5")
    folder = export(tmp_path / "Tuned-GGUF", [gguf("Q8_0")])
    recipe = tmp_path / "r.yaml"
    for words in (
        ["inspect", model],
        ["init", model, "-o", recipe],
        ["run", recipe, "--dry-run"],
        ["matrix", recipe, "demo", "--format", "github"],
        ["gguf", model, "-q", "Q4_K_M", "--dry-run"],
        ["mlx", model, "--bits", "6", "--dry-run"],
        ["fp8", model, "--dry-run"],
        ["report", folder, "-o", tmp_path / "report"],
        ["push", folder, "me/x", "--dry-run"],
    ):
        code, output, said, error = plain(*words)
        assert code == 0, (words, output, said, error)


@pytest.mark.parametrize("command", ["gguf", "mlx", "fp8", "nvfp4", "run", "imatrix", "fix", "demo"])
def test_what_needs_them_says_what_to_install(plain, zoo, tmp_path, command):
    model = zoo("llama")
    words = {"gguf": [model, "-q", "Q8_0"], "run": ["demo", "--only", "merged"], "demo": []}.get(
        command, [model]
    )
    _, _, said, error = plain(command, *words, "-o", tmp_path / "out")
    assert said is not None, error
    message, hint, code = said
    assert code == 6
    assert message.split()[0] in {name.replace("_", "-") for name in EXTRAS} or "not installed" in message
    assert "pip install 'qexport[" in hint
    assert not list(tmp_path.glob("out/*/*"))


def test_a_bench_says_which_runtime_is_not_there():
    hint = "pip install 'qexport[llama]'"
    made = [EnvironmentProblem("xllamacpp cannot be imported", hint=hint) for _ in range(2)]
    with pytest.raises(EnvironmentProblem) as caught:
        check_timed([Timed(f"{at}.gguf", error=error) for at, error in enumerate(made)])
    assert caught.value.message == "xllamacpp cannot be imported"
    assert caught.value.hint == hint
    other = Timed("2.gguf", error=EnvironmentProblem("another"))
    with pytest.raises(EnvironmentProblem, match="xllamacpp cannot be imported; another"):
        check_timed([Timed("0.gguf", error=made[0]), other])


def test_extras_are_those_of_the_package():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for module, extra in EXTRAS.items():
        name = module.replace("_", "-")
        assert any(each.startswith(name) for each in extras[extra]), module
        assert not any(each.startswith(name) for each in project["dependencies"]), module
    for extra in ("llama", "reference", "mlx"):
        assert "qexport[torch]" in extras[extra]
    assert set(WEIGHTS) < set(EXTRAS)


def test_the_hubs_client_is_one_whose_errors_are_known():
    """1 speaks through httpx, 2 through httpx2: what is caught is what the one that is installed raises."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (hub,) = (
        found for each in project["dependencies"] if (found := Requirement(each)).name == "huggingface-hub"
    )
    assert [hub.specifier.contains(each) for each in ("1.33.0", "2.4.0", "3.0.0")] == [True, True, False]
    assert hub_http().__name__ in {Requirement(each).name for each in requires("huggingface_hub")}
