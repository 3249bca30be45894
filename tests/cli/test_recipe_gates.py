"""`qexport run` to its end on the demo model: gates kept and broken, report, rehearsed push, a second run."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from in_process import Ran, names, ok, run

from qexport.demo import MODEL
from qexport.demo.merge import lora_like_merge

pytestmark = pytest.mark.slow
RECIPE = f"""\
source: {{model: {MODEL}, name: Demo}}
verify: {{n_predict: 16, prompts: [Tell me a story about a fox.]}}
artifacts:
  - nvfp4: {{layout: compressed-tensors}}
    gates: {{max_mean_kld: 0.000001, min_same_top1: 0.5}}
  - gguf: {{types: [Q8_0], no_mmproj: true}}
    gates: {{max_mean_kld: 0.01, min_same_top1: 0.9, min_agreement: 0.9, min_acceptance: 0.3, max_size: 1G}}
publish: {{repo: "someone/{{folder}}", card: {{base_model: someone/Demo, license: mit}}}}
"""
KEPT = {"max_mean_kld", "min_same_top1", "min_agreement", "min_acceptance", "max_size"}


@dataclass(frozen=True)
class Done:
    """A run that is over, and all files that it left, with the time and inode of each."""

    words: tuple[object, ...]
    out: Path
    ran: Ran
    files: dict[str, tuple[int, int]]

    def artifact(self, folder: str) -> dict:
        (found,) = json.loads((self.out / folder / "qexport.json").read_text())["artifacts"]
        return found


def files_of(out: Path) -> dict[str, tuple[int, int]]:
    every = {str(path.relative_to(out)): path.stat() for path in out.rglob("*") if path.is_file()}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in every.items()}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    recipe, out = folder / "demo.yaml", folder / "out"
    recipe.write_text(RECIPE)
    words = ("run", recipe, "-o", out, "--measure", "512", "--push-dry-run")
    return Done(words, out, run(*words), files_of(out))


def test_a_gate_that_is_not_kept_ends_the_run_with_its_own_code(done):
    assert done.ran.code == 5, done.ran.stderr
    assert "gate not kept: Demo-NVFP4A16 max_mean_kld 1e-06: 0.0" in done.ran.stderr
    assert done.ran.stderr.count("gate not kept") == 1
    assert "the recipe's gates were not kept" in done.ran.stderr


def test_receipts_say_how_each_gate_ended(done):
    broken = done.artifact("Demo-NVFP4A16")
    assert broken["state"] == "passed"
    gates = {gate["gate"]: gate for gate in broken["gates"]}
    assert {name: gate["passed"] for name, gate in gates.items()} == {
        "max_mean_kld": False,
        "min_same_top1": True,
    }
    assert gates["max_mean_kld"]["value"] == broken["verification"]["measures"]["kld"]["mean"] > 1e-6
    kept = done.artifact("Demo-GGUF")
    assert {gate["gate"] for gate in kept["gates"]} == KEPT
    assert all(gate["passed"] and gate["value"] is not None for gate in kept["gates"])


def test_the_report_is_written_and_has_them(done):
    assert {"report.html", "report.md", "report.json"} <= names(done.out)
    report = json.loads((done.out / "report.json").read_text())
    assert len(report["gates"]) == len(KEPT) + 2
    assert [gate["gate"] for gate in report["gates"] if not gate["passed"]] == ["max_mean_kld"]
    markdown = (done.out / "report.md").read_text()
    assert "## Gates" in markdown
    html = (done.out / "report.html").read_text()
    for text in (markdown, html):
        assert "Demo-NVFP4A16" in text
        assert str(done.out) not in text


def test_the_push_is_refused_for_it_and_rehearsed_for_the_other(done):
    assert "someone/Demo-GGUF (new, private)" in done.ran.stdout
    assert "nothing has been sent" in done.ran.stdout
    assert "base_model: someone/Demo" in done.ran.stdout
    assert str(done.out) not in done.ran.stdout.partition("someone/Demo-GGUF (new")[2]
    assert "someone/Demo-NVFP4A16 (new" not in done.ran.stdout
    assert "limits not kept: max_mean_kld" in done.ran.stderr
    alone = run("push", done.out / "Demo-NVFP4A16", "someone/Demo-NVFP4A16", "--dry-run")
    assert alone.code == 4
    assert "limits not kept: max_mean_kld" in alone.stderr


def test_a_second_run_makes_nothing_again_and_ends_the_same(done):
    again = run(*done.words, "-v")
    assert again.code == 5
    assert again.stderr.count("is there, from the same source and options (pass") == 2
    assert "loading into" not in again.stderr
    assert "measuring" not in again.stderr
    for name, stamp in files_of(done.out).items():
        if not name.startswith("report.") and not name.endswith("qexport.json"):
            assert stamp == done.files[name], name
    assert files_of(done.out).keys() == done.files.keys()
    assert done.artifact("Demo-NVFP4A16")["gates"][0]["passed"] is False


def test_a_limit_that_is_changed_is_judged_without_making_anything(done):
    gate = "artifacts.nvfp4.gates.max_mean_kld=0.5"
    changed = ok(*done.words, "-v", "--set", gate)
    assert "loading into" not in changed.stderr
    assert "someone/Demo-NVFP4A16 (new, private)" in changed.stdout
    assert all(each["passed"] for each in done.artifact("Demo-NVFP4A16")["gates"])


def test_a_tune_beside_its_base_stands_side_by_side_in_the_report(done, tmp_path):
    tuned, out = lora_like_merge(MODEL, tmp_path / "tuned", style="declared"), tmp_path / "out"
    sets = (f"source={{model: {tuned}, name: Tuned}}", f"mtp={{base: {MODEL}}}")
    sets += (f"compare={{model: {MODEL}, name: Demo}}",)
    words = ("run", done.words[1], "-o", out, "--only", "gguf", "--measure", "512", "--json")
    ran = ok(*words, *(word for each in sets for word in ("--set", each)))
    assert len(ran.json()) == 2
    report = json.loads((out / "report.json").read_text())
    assert report["title"] == "Tuned beside Demo"
    assert [model["title"] for model in report["models"]] == ["Tuned", "Demo"]
    (comparison,) = report["comparison"]
    assert comparison["with"] == "Demo"
    (pair,) = comparison["pairs"]
    assert (pair["kind"], pair["label"], pair["differing"]) == ("gguf", "Q8_0", [])
    assert "Tuned beside Demo" in (out / "report.md").read_text()
    # Gates are judged for both, each by what was measured against its own source.
    assert len(report["gates"]) == 2 * len(KEPT)
    assert len({gate["artifact"] for gate in report["gates"]}) == 2


def test_what_was_not_run_keeps_no_gate_and_is_not_pushed(done, tmp_path):
    """A measured gate that nothing was measured for is not kept; without gates the push is refused alone."""
    words = ("run", done.words[1], "-o", tmp_path / "out", "--only", "gguf", "--no-verify", "--push-dry-run")
    ran = run(*words)
    assert ran.code == 5
    assert "min_agreement 0.9: nothing was measured" in ran.stderr
    alone = run(*words, "--set", "artifacts.gguf.gates={}")
    assert alone.code == 6
    assert "someone/Demo-GGUF: not published, for the reasons above" in alone.stderr
