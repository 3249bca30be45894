"""What `--json` prints is what docs/json.md says, no key more and none less."""

import re
import sys
from pathlib import Path

import pytest
from document_types import misfits
from in_process import run

sys.path.insert(0, str(Path(__file__).parents[1] / "publish"))
from exported_folders import export, gguf

from qexport.cli import _documents as documents
from qexport.cli.main import COMMANDS, cli

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
    theirs = {"label": "org/Base@0123abcd", "files": {}, "mtp": "own"}
    other = export(out / "Base-GGUF", [gguf("Q8_0", source=theirs)])
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
        (documents.ReportDocument, ["report", made["folder"], "--compare", other, "-o", out / "report"]),
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


def test_every_command_that_prints_json_says_what():
    """And of each page's section a real output is held against it in some test."""
    known = {name: cli.get_command(None, name) for name in COMMANDS}
    inner = ((name, getattr(each, "commands", {})) for name, each in known.items())
    known |= {f"{name} {key}": each for name, found in inner for key, each in found.items()}
    prints = {name for name, each in known.items() if any(p.name == "as_json" for p in each.params)}
    words = (each for key in documents.DOCUMENTS for each in key.split(", "))
    said = {re.sub(" (-|of ).*", "", each) for each in words}
    assert prints - said == set()
    assert said - prints == {"", "matrix"}  # which has --format
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    for kind in documents.DOCUMENTS.values():
        assert re.search(rf"\b{kind.__name__}\b", tests), kind


def test_the_check_sees_what_does_not_fit():
    good = {"error": "x", "hint": None, "exit_code": 2}
    assert misfits(documents.ErrorDocument, good) == []
    for wrong in ({**good, "hint": 3}, {**good, "more": 1}, {"error": "x"}, {**good, "exit_code": True}, []):
        assert misfits(documents.ErrorDocument, wrong)
