"""What `--json` prints is what docs/json.md says, no key more and none less."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from in_process import run

sys.path.insert(0, str(Path(__file__).parents[1] / "publish"))
from exported_folders import export, gguf

from qexport.cli import _documents as documents


def misfits(kind, value, where="it"):
    """Where a value is not what the type says."""
    if kind is Any:
        return []
    if isinstance(kind, UnionType):
        each = [misfits(one, value, where) for one in get_args(kind)]
        return [] if [] in each else [found for one in each for found in one]
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        hints = get_type_hints(kind)
        wrong = [f"{where}.{key} is not said" for key in value if key not in hints]
        wrong += [f"{where}.{key} is missing" for key in kind.__required_keys__ - value.keys()]
        inner = [misfits(hints[key], value[key], f"{where}.{key}") for key in value if key in hints]
        return wrong + [found for one in inner for found in one]
    if get_origin(kind) is list:
        if not isinstance(value, list):
            return [f"{where} is no list"]
        (item,) = get_args(kind)
        return [
            found for number, each in enumerate(value) for found in misfits(item, each, f"{where}[{number}]")
        ]
    if get_origin(kind) is Mapping:
        if not isinstance(value, dict):
            return [f"{where} is no mapping"]
        return [
            found
            for key, each in value.items()
            for found in misfits(get_args(kind)[1], each, f"{where}.{key}")
        ]
    if kind is type(None):
        return [] if value is None else [f"{where} is not null"]
    fits = isinstance(value, int | float if kind is float else kind)
    return (
        [] if fits and (kind is bool or not isinstance(value, bool)) else [f"{where} is {value!r}, no {kind}"]
    )


RECIPE = """\
source: {{model: {model}, name: Zoo}}
artifacts: [{{gguf: {{types: [BF16]}}}}, {{merged: }}]
verify: false
measure: 0
"""


@pytest.fixture
def made(zoo, tmp_path):
    """What commands work on: a model, a recipe and its results, an exported folder."""
    recipe = tmp_path / "zoo.yaml"
    recipe.write_text(RECIPE.format(model=zoo("llama3")))
    second = tmp_path / "two.yaml"
    second.write_text(RECIPE.format(model=zoo("llama3")).replace("Zoo", "Two"))
    folder = export(tmp_path / "Tuned-GGUF", [gguf("Q8_0")])
    return {"model": zoo("llama3"), "recipe": recipe, "second": second, "folder": folder, "out": tmp_path}


def test_documents_are_as_the_page_says(made, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = made["out"]
    asked = [
        (documents.InspectDocument, ["inspect", made["model"]]),
        (documents.InitDocument, ["init", made["model"], "-o", out / "i.yaml"]),
        (documents.PlansDocument, ["gguf", made["model"], "-q", "Q4_K_M", "--dry-run"]),
        (documents.PlansDocument, ["mlx", made["model"], "--bits", "6", "--dry-run"]),
        (documents.ExportDocument, ["gguf", made["model"], "-q", "BF16", "-o", out / "g", "--no-verify"]),
        (documents.FixDocument, ["fix", made["model"], "-o", out / "fixed"]),
        (list[documents.JobDocument], ["run", made["recipe"], "--dry-run"]),
        (list[documents.ExportDocument], ["run", made["recipe"], "-o", out / "one"]),
        (list[documents.RecipeDocument], ["run", made["recipe"], made["second"], "-o", out / "two"]),
        (documents.PushDocument, ["push", made["folder"], "me/x", "--dry-run"]),
        (documents.ErrorDocument, ["inspect", out / "gone"]),
        (documents.ErrorDocument, ["run", made["recipe"], "--only", "nothing"]),
    ]
    for kind, words in asked:
        ran = run(*words, "--json")
        assert misfits(kind, ran.json()) == [], words
    jobs = run("matrix", made["recipe"], made["second"], "--format", "json").json()
    assert misfits(list[documents.JobDocument], jobs) == []
    (listed,) = run("matrix", made["recipe"], "--format", "github").json().values()
    assert misfits(list[documents.JobDocument], listed) == []
    arrived = run("matrix", made["recipe"], "--check", out / "one", "--format", "json").json()
    assert misfits(list[documents.ArrivedDocument], arrived) == []


def test_the_check_sees_what_does_not_fit():
    good = {"error": "x", "hint": None, "exit_code": 2}
    assert misfits(documents.ErrorDocument, good) == []
    for wrong in ({**good, "hint": 3}, {**good, "more": 1}, {"error": "x"}, {**good, "exit_code": True}, []):
        assert misfits(documents.ErrorDocument, wrong)
