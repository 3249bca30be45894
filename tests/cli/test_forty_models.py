"""Many recipes at once: planned from headers in one call, run one after the other, skipped if unchanged."""

import json
import re
import sys
from pathlib import Path

import pytest
from in_process import names, ok, run

sys.path.insert(0, str(Path(__file__).parents[1] / "publish"))
from push_server import PushHub

from qexport import __version__
from qexport.run import changed

MODELS = ("qwen3_5", "qwen3_5_text", "llama", "qwen3")
SMALL = """\
source: {{model: {model}, name: {name}}}
artifacts:
  - gguf: {{types: [BF16]}}
  - merged:
verify: false
measure: 0
publish: {{repo: "me/{{folder}}"}}
"""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with sources, that takes pushes; this process's client talks to it."""
    from huggingface_hub import constants

    with PushHub() as server:
        server.serve_client(monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def recipe(folder, name, model, text=SMALL):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text.format(model=model, name=name))
    return path


def test_forty_recipes_are_planned_in_one_call_from_headers(hub, zoo, tmp_path):
    for model in MODELS:
        hub.add(f"org/{model}", zoo(model))
    every = [recipe(tmp_path / "r", f"m{n:02}", f"org/{MODELS[n % 4]}") for n in range(40)]
    ran = ok("matrix", *every, "--format", "github")
    assert ran.stdout.count("\n") == 1
    entries = ran.json()["include"]
    assert [entry["recipe"] for entry in entries] == [str(path) for path in every]
    assert len({entry["name"] for entry in entries}) == 40
    assert all(entry["exact"] and entry["command"].startswith("qexport run ") for entry in entries)
    shown = ok("matrix", *every[:2], *every[4:6]).stdout
    assert "4 recipes, 4 jobs; 2 models and bases looked at for 4 uses." in shown
    assert re.search(r"Jobs download \S+ \S+; each model once would be \S+ \S+\.", shown)
    weights = sum(r.sent for r in hub.requests if r.path.endswith(".safetensors"))
    assert 0 < weights < sum(path.stat().st_size for path in zoo("llama").glob("*.safetensors"))


def test_what_cannot_be_planned_holds_up_no_other(zoo, tmp_path):
    good = recipe(tmp_path, "good", zoo("llama"))
    bad = recipe(tmp_path, "bad", "nothing here")
    broken = recipe(tmp_path, "broken", zoo("llama"), "source: {{modell: {model}}}\n")
    ran = run("matrix", good, bad, broken, "--format", "github")
    assert [entry["recipe"] for entry in json.loads(ran.stdout)["include"]] == [str(good)]
    assert ran.code == 3  # graver than the mistake in the third
    assert "2 of the recipes ended with an error: broken, bad" in ran.stderr
    assert "unknown key 'modell'" in ran.stderr
    assert run("matrix", broken).code == 2


def test_one_after_the_other_and_one_that_fails(zoo, tmp_path):
    first, last = recipe(tmp_path, "first", zoo("llama")), recipe(tmp_path, "last", zoo("qwen3"))
    bad = recipe(tmp_path, "bad", tmp_path / "gone")
    out = tmp_path / "out"
    ran = run("run", first, bad, last, "-o", out, "--only", "merged", "--json")
    assert ran.code == 3
    states = {each["recipe"]: (each["state"], each["exit_code"]) for each in ran.json()}
    assert states == {"first": ("not run", 0), "bad": ("failed", 3), "last": ("not run", 0)}
    assert names(out) == {"first", "last"}
    assert (out / "last" / "last-BF16" / "qexport.json").is_file()
    assert (out / "first" / "report.html").is_file()
    stopped = run("run", bad, first, "-o", out, "--only", "merged", "--fail-fast", "--no-verify")
    assert stopped.code == 3
    lines = [line.split() for line in stopped.stdout.splitlines()]
    assert ["first", "-", "not", "run"] in lines


def test_two_recipes_of_one_name(zoo, tmp_path):
    (tmp_path / "other").mkdir()
    ran = run("run", recipe(tmp_path, "a", "x"), recipe(tmp_path / "other", "a", "x"), "-o", tmp_path / "out")
    assert ran.code == 2
    assert "two of the recipes are called a" in ran.stderr


def test_a_word_for_only_need_not_name_something_in_each(zoo, tmp_path):
    two = recipe(tmp_path, "two", zoo("llama"))
    mine = "source: {{model: {model}, name: One}}\nartifacts: [{{gguf: {{types: [BF16]}}}}]\n"
    one = recipe(tmp_path, "one", zoo("llama"), mine)
    entries = ok("matrix", two, one, "--only", "merged,gguf:BF16", "--format", "json").json()
    assert [(each["name"], each["only"]) for each in entries] == [
        ("two.two", "gguf,merged"), ("one.One", "gguf"),
    ]  # fmt: skip
    assert [
        each["name"] for each in ok("matrix", two, one, "--only", "merged", "--format", "json").json()
    ] == ["two.two"]
    assert "--only mlx names nothing" in run("matrix", two, one, "--only", "mlx").stderr


def test_if_changed(hub, zoo, tmp_path, monkeypatch):
    """Pushed once; then the recipe, the source, the version and the repository each change."""
    hub.add("org/Tuned", zoo("llama"))
    path, out = recipe(tmp_path / "r", "Tuned", "org/Tuned"), tmp_path / "out"
    words = ("matrix", path, "--if-changed", "--format", "json")
    first = run(*words)
    assert [each["only"] for each in first.json()] == ["gguf,merged"]
    assert first.stderr.count("there is no such repository yet") == 2
    ok("run", path, "-o", out)
    ok("push", out, "--recipe", path, "--allow-unverified")

    def made(*more):
        ran = ok(*words, *more)
        return [each["only"] for each in ran.json()], ran.stderr

    assert made()[0] == []
    again = ok("run", path, "-o", tmp_path / "again", "--if-changed")
    assert "Nothing has changed" in again.stdout
    assert not (tmp_path / "again").exists()
    only, why = made("--set", "artifacts.merged.gates.max_size=20G")
    assert only == ["merged"]
    assert "merged: the recipe asks for something else now" in why
    assert made("--set", "publish.private=true", "--set", "artifacts.gguf.gguf.types=[BF16,F16]")[0] == [
        "gguf:F16"
    ]
    monkeypatch.setattr(changed, "__version__", "99")
    assert "it was written by qexport" in made()[1]
    monkeypatch.setattr(changed, "__version__", __version__)
    gone = hub.pushed["me/Tuned-BF16"]
    gone.record({k: v for k, v in gone.tree().items() if not k.endswith(".safetensors")}, "main")
    assert made()[0] == ["merged"]
    assert "a file of it is gone" in made()[1]
    hub.repos["org/Tuned"].sha = "f" * 40
    only, why = made()
    assert only == ["gguf,merged"]
    assert "it was made from org/Tuned@" in why


def test_a_folder_has_always_changed(hub, zoo, tmp_path):
    path = recipe(tmp_path / "r", "Here", zoo("llama"))
    ran = ok("matrix", path, "--if-changed", "--format", "json")
    assert [each["only"] for each in ran.json()] == ["gguf,merged"]
    assert "its source is a folder" in ran.stderr


def test_a_head_beside_files_that_is_gone_is_made_again(hub, zoo, tmp_path):
    hub.add("org/Tuned", zoo("qwen3_5"))
    text = SMALL.replace("[BF16]", "[BF16], mtp: drafter, no_mmproj: true").replace("  - merged:\n", "")
    path, out = recipe(tmp_path / "r", "Tuned", "org/Tuned", text), tmp_path / "out"
    ok("run", path, "-o", out)
    ok("push", out, "--recipe", path, "--allow-unverified")
    words = ("matrix", path, "--if-changed", "--format", "json")
    assert ok(*words).json() == []
    there = hub.pushed["me/Tuned-GGUF"]
    there.record({k: v for k, v in there.tree().items() if not k.startswith("mtp-")}, "main")
    again = ok(*words)
    assert [each["only"] for each in again.json()] == ["gguf"]
    assert "gguf:BF16: mtp-Q8_0 beside it is gone, or another" in again.stderr
