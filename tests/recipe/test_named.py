"""Recipes by name, from a checkout and from the wheel that pip installs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from in_process import ok, run

from qexport.errors import UsageProblem
from qexport.recipe.load import load_recipe
from qexport.recipe.named import find_recipe, shipped_recipes, shown

ROOT = Path(__file__).parents[2]
NAMES = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


def test_every_recipe_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(shipped_recipes()) == NAMES >= {"demo", "qwen3.5-9b", "llama"}
    for name in NAMES:
        assert find_recipe(name) == find_recipe(f"recipes/{name}.yaml") == find_recipe(f"{name}.yaml")
        assert shown(find_recipe(name)) == name


def test_a_file_that_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("mine")
    assert find_recipe("demo") == Path("demo")
    assert shown(Path("demo")) == "demo"
    Path("llama").mkdir()
    assert find_recipe("llama") == shipped_recipes()["llama"]


@pytest.mark.parametrize("spec", ["qwen3.5-9", "other/demo.yaml", "../demo", "x" * 5000, "a\0b", ""])
def test_neither_a_file_nor_a_name(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if spec == "":
        spec = "none"
    with pytest.raises(UsageProblem) as caught:
        find_recipe(spec)
    assert all(name in caught.value.hint for name in NAMES)
    assert ("did you mean 'qwen3.5-9b'" in caught.value.message) == (spec == "qwen3.5-9")


def test_commands_take_names():
    (job,) = ok("matrix", "demo", "--format", "json", "--only", "mlx").json()
    assert job["command"] == "qexport run demo --only mlx"
    assert run("matrix", "demoo").code == 2


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built as pip builds it, unpacked."""
    build = pytest.importorskip("hatchling.build")
    out = tmp_path_factory.mktemp("wheel")
    script = f"import {build.__name__} as build, sys; print(build.build_wheel(sys.argv[1]))"
    made = subprocess.run(
        [sys.executable, "-c", script, out], capture_output=True, text=True, check=True, cwd=ROOT
    )
    installed = out / "installed"
    zipfile.ZipFile(out / made.stdout.split()[-1]).extractall(installed)
    return installed


def test_the_wheel_holds_recipes_and_corpus_and_reads_them_by_name(wheel, tmp_path):
    """README's second command, after `pip install`: no checkout anywhere near."""
    script = (
        "import qexport, sys\n"
        "from qexport.recipe.named import find_recipe, shipped_recipes\n"
        "from qexport.recipe.load import load_recipe\n"
        "from qexport.evidence.corpus import builtin_corpus\n"
        "from pathlib import Path\n"
        "print(Path(qexport.__file__).parents[1])\n"
        "for name in shipped_recipes():\n"
        "    recipe = load_recipe(find_recipe(name))\n"
        "    print(name, recipe.path, recipe.subjects[0].choice.model)\n"
        "print(len(builtin_corpus().records))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(wheel), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    first, *recipes, records = ran.stdout.splitlines()
    assert Path(first) == wheel
    found = {name: (Path(path), model) for name, path, model in (line.split() for line in recipes)}
    assert set(found) == NAMES
    assert all(wheel in path.parents for path, _ in found.values())
    assert (Path(found["demo"][1]) / "model.safetensors").is_file()
    assert wheel in Path(found["demo"][1]).parents
    assert int(records) > 100
    for name in NAMES:
        assert (wheel / "qexport/recipe/data" / f"{name}.yaml").read_bytes() == (
            ROOT / "recipes" / f"{name}.yaml"
        ).read_bytes()


def test_what_trained_the_demo_stays_out_of_the_wheel(wheel):
    assert {path.name for path in (wheel / "qexport/demo").iterdir()} == {
        *("__init__.py", "answers.py", "merge.py", "model")
    }
    assert {path.name for path in wheel.iterdir() if path.is_dir() and path.suffix != ".dist-info"} == {
        "qexport"
    }


def test_the_demo_is_the_model_inside_the_package():
    from qexport.demo import MODEL

    assert Path(load_recipe(find_recipe("demo")).subjects[0].choice.model) == MODEL
