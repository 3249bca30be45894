"""The demo, and verification from the command line, in the real runtime."""

import json
import os
import subprocess
import sys

import pytest
from document_types import misfits
from in_process import run

from qexport.cli._documents import ExportDocument
from qexport.demo import MODEL

pytestmark = pytest.mark.slow


SECRETS = {
    "HF_TOKEN": "hf_plantedPlantedPlanted",
    "OPENAI_API_KEY": "sk-planted-planted",
    "AWS_SECRET_ACCESS_KEY": "planted/aws/secret",
    "MY_OWN_SECRET": "planted-own-secret",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """As a user runs it: a process of its own, with secrets about."""
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "qexport", "demo", "-o", str(out), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **SECRETS})
    assert result.returncode == 0, result.stderr
    return out, json.loads(result.stdout)


def test_the_demo_ends_green_with_the_head_at_work(demo):
    out, document = demo
    assert misfits(ExportDocument, document) == []
    *every, tower = sorted(document["artifacts"], key=lambda artifact: artifact["kind"] == "mmproj")
    assert tower["label"] == "mmproj-BF16"
    assert [a["label"] for a in every] == ["Q4_K_M", "Q8_0", "6bit", "6bit-MTP", "FP8", "NVFP4"]
    for artifact in every:
        assert artifact["state"] == "passed"
        found = {finding["check"]: finding for finding in artifact["verification"]["findings"]}
        head = found["mtp_head"]["data"]
        measures = artifact["verification"]["measures"]
        assert measures["acceptance"]["error"] > 0
        if artifact["label"] == "6bit-MTP":  # a head alone: nothing of what its trunk has shown
            assert set(found) == {"mtp_head"}
            assert "kld" not in measures
        else:
            assert measures["positions"] == 1020
            assert 0 < measures["kld"]["error"] < measures["kld"]["mean"] < 0.2
            assert "p99_9" not in measures["kld"]
        assert head["acceptance"] > head["source"]["acceptance"] - 0.05
    for artifact in every:  # counted from the plan, and from what is stored: one figure
        told = json.loads((out / artifact["folder"] / "qexport.json").read_text())["artifacts"]
        (mine,) = (each for each in told if each["label"] == artifact["label"])
        assert artifact["verification"]["bits_per_weight"] == pytest.approx(mine["bits_per_weight"], abs=2e-4)
    for artifact in every[:2]:
        report = artifact["verification"]
        assert report["unverified"] == []
        assert report["images"] == "passed"
        found = {finding["check"]: finding for finding in report["findings"]}
        assert found["image_text"]["data"]["answers"] == ["A blue 7.", "A red triangle."]
        assert {"agreement", "mtp_text", "mtp_acceptance", "tokens", "template"} <= set(report["verified"])
        assert report["drafts"]["accepted"] > 0.4 * report["drafts"]["drafted"]
        assert "tok_s" not in json.dumps(report)
        assert (out / "Demo-Tuned-GGUF" / artifact["files"][0]["name"]).is_file()


def test_a_second_demo_makes_nothing_again_and_all_answer_side_by_side(demo):
    out, document = demo
    weights = [path for path in out.rglob("*") if path.suffix in (".gguf", ".safetensors")]
    before = {path: path.stat().st_mtime_ns for path in weights}
    result = run("demo", "-o", out, "--json")
    assert result.code == 0, result.stderr
    again = result.json()["artifacts"]
    assert [(a["label"], a["state"]) for a in again] == [
        (a["label"], a["state"]) for a in document["artifacts"]
    ]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert result.stderr.count("is there, from the same source and options") == 7
    assert "Merged by an earlier demo" in result.stderr
    assert "Proven by llama.cpp" not in result.stderr

    told = result.stderr.split("The same questions, answered by")[1]
    assert "What is the capital of Japan?" in told
    answered = told.split("What is the capital of Japan?")[1].split("Write a Python")[0]
    assert "the source" in answered.splitlines()[1]
    for title in ("Q4_K_M", "Q8_0", "MLX 6bit", "FP8", "NVFP4"):
        assert title in answered
    assert "The capital of Japan is Tokyo." in answered
    assert "      def add(a, b):\n          return a + b\n" in told
    assert "NVFP4 is the largest file here" in told
    assert max(map(len, told.splitlines()[1:])) <= 80


def test_a_folder_that_no_demo_has_made_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    result = run("demo", "-o", tmp_path / "mine")
    assert result.code == 2
    assert "mine is already there" in result.stderr
    assert list((tmp_path / "mine").iterdir()) == []


def test_the_merge_really_lost_its_head(demo):
    out, _ = demo
    found = run("inspect", out / "Demo-Tuned", "--json").json()["findings"]
    assert found[0]["id"] == "mtp.lost"
    assert found[0]["severity"] == "error"
    refused = run("gguf", out / "Demo-Tuned", "-q", "Q8_0", "-o", out / "refused")
    assert refused.code == 3
    assert "--mtp graft --mtp-from BASE" in refused.stderr
    assert "--mtp drop" in refused.stderr
    assert not (out / "refused").exists()


def test_no_file_holds_a_secret_or_a_path_of_this_machine(demo):
    out, document = demo
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {".gguf", ".json", ".safetensors", ".html", ".md"} <= {path.suffix for path in files}
    planted = {*SECRETS.values(), str(out), str(out.parent), str(MODEL), str(MODEL.parent)}
    for path in files:
        data = path.read_bytes()
        assert [word for word in planted if word.encode() in data] == [], path.relative_to(out)
    assert [word for word in SECRETS.values() if word in json.dumps(document)] == []


def test_the_demo_model_fits_the_package():
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10_000_000


def test_what_nothing_here_can_run_is_the_same_everywhere(demo, tmp_path):
    """ModelOpt's NVFP4, no twin: said before it is written; export, verify, push, card and report agree."""
    out, _ = demo
    folder = tmp_path / "Demo-NVFP4"
    words = ("nvfp4", out / "Demo-Tuned", "--mtp", "graft", "--mtp-from", MODEL, "-o", folder, "--no-twin")
    made = run(*words, "--measure", "0", "--json")
    assert made.code == 6
    before, _, _ = made.stderr.partition("1 artifact (")
    assert "nothing here can prove" in before
    assert "--runtime vllm --runtime-python" in before
    (artifact,) = made.json()["artifacts"]  # one document, though an error follows it
    assert artifact["state"] == "not run"
    assert json.loads((folder / "qexport.json").read_text())["artifacts"][0]["state"] == "not run"
    assert run("verify", folder, "--no-twin").code == 6
    assert run("push", folder, "a/b", "--dry-run").code == 6
    shown = run("push", folder, "a/b", "--dry-run", "--allow-unverified", "--json")
    assert shown.code == 0, shown.stderr
    card = shown.json()["card"]
    assert "**This has not passed verification.**" in card
    assert "failed" not in card
    assert "| not run |" in card
    report = run("report", folder, "-o", tmp_path / "report")
    assert "1 not run (NVFP4)" in report.stdout
    assert "Closest" not in report.stdout
    assert run(*words, "--measure", "0", "--allow-unverified").code == 0


def test_verify_judges_any_file(demo, tmp_path):
    out, _ = demo
    (good,) = (out / "Demo-Tuned-GGUF").glob("*Q8_0.gguf")
    result = run("verify", good, "--against", out / "Demo-Tuned", "--json")
    assert result.code == 0, result.stderr
    assert result.json()["state"] == "passed"
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    result = run("verify", broken, "--json")
    assert result.code == 4
    assert result.json()["state"] == "failed"


def test_another_models_file_is_caught(demo, zoo):
    """The file is sound and runs; it just is not what its source would have said."""
    out, _ = demo
    (good,) = (out / "Demo-Tuned-GGUF").glob("*Q8_0.gguf")
    result = run("verify", good, "--against", zoo("qwen3_5"), "--json")
    assert result.code == 4
    failed = {f["check"] for f in result.json()["findings"] if f["status"] == "fail"}
    assert failed & {"tokens", "agreement"}
