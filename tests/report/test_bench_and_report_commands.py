"""``qexport bench`` and ``qexport report`` as a user meets them."""

from __future__ import annotations

import json

import pytest
from document_types import misfits
from in_process import names, ok, run
from receipts_by_hand import FAILED, UNRUN, entry, gguf, large_ladder, measures, of_base, receipt
from receipts_by_hand import bench as figures
from verify_fakes import write_llama

from qexport.children.failure import Failure, RuntimeFailure
from qexport.cli._documents import BenchDocument, ReportDocument
from qexport.receipt.speeds import Bench
from qexport.receipt.typed import fit
from qexport.run import bench as module
from qexport.verification.bench import Benched


@pytest.fixture
def file(tmp_path):
    """A GGUF with its receipt."""
    path = write_llama(tmp_path / "Tuned-Q8_0.gguf")
    receipt(tmp_path, gguf("Q8_0", path.stat().st_size, measures=measures(0.001, 0.05)))
    return path


@pytest.fixture
def asked(monkeypatch):
    """What ``bench`` is called with; it answers with the figures of a made-up machine."""
    calls = []

    def fake(about, runtime, options, say):
        calls.append((about.path, about, runtime, options))
        say("measuring")
        return Benched(fit(Bench, figures(40.0), "bench", []))

    monkeypatch.setattr(module, "bench", fake)
    return calls


def noted(folder):
    (entry,) = json.loads((folder / "qexport.json").read_text())["artifacts"]
    return entry["bench"]


def test_figures_are_shown_and_noted(file, asked):
    ran = ok("bench", file)
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert ["off", "40.0", "38.0", "41.6", "1.00", "-", "800"] in lines
    assert ["n-max", "2", "58.0", "55.1", "60.3", "1.45", "70%", "800"] in lines
    assert "xllamacpp 1.2, 16 threads, on Ryzen 7950X, 32 hardware threads, Linux x86_64" in ran.stdout
    following = f"Next: qexport report {file.parent}"
    assert ran.stderr.splitlines() == ["measuring", "Noted in qexport.json beside it.", following]
    assert noted(file.parent) == fit(Bench, figures(40.0), "bench", []).to_json()


def test_options_reach_the_measurement(file, asked):
    words = (
        "--n-max",
        "2",
        "--prompt",
        "a",
        "--prompt",
        "b",
        "--tokens",
        "9",
        "--repeats",
        "5",
        "--threads",
        "3",
    )
    ok("bench", file, *words, "--prompt-tokens", "99", "--timeout", "7")
    options = asked[0][3]
    assert (options.n_max, options.prompts, options.n_predict, options.repeats) == (2, ("a", "b"), 9, 5)
    assert (options.threads, options.prompt_tokens, options.time_limit) == (3, 99, 7.0)


def test_json_is_one_document_without_paths(file, asked):
    ran = ok("bench", file, "--json")
    assert misfits(BenchDocument, ran.json()) == []
    assert ran.json()["artifact"] == file.name
    assert ran.json()["receipt"] is True
    assert len(ran.json()["speeds"]) == 5
    assert str(file.parent) not in ran.stdout


def test_the_receipt_can_be_left_alone(file, asked):
    before = (file.parent / "qexport.json").read_bytes()
    assert ok("bench", file, "--no-receipt", "--json").json()["receipt"] is False
    assert (file.parent / "qexport.json").read_bytes() == before


def test_an_artifact_without_a_receipt(file, asked):
    (file.parent / "qexport.json").unlink()
    ran = ok("bench", file)
    assert "No receipt knows this artifact" in ran.stderr
    assert names(file.parent) == {file.name}


def test_failing_with_mtp_is_4_after_the_figures(file, monkeypatch):
    failure = RuntimeFailure(Failure.DIED, "llama.cpp exited with code 1")
    made = Benched(fit(Bench, figures(40.0, (1.2,)), "bench", []), (failure,))
    monkeypatch.setattr(module, "bench", lambda *_: made)
    ran = run("bench", file, "--json")
    assert ran.code == 4
    assert len(ran.json()["speeds"]) == 2
    assert "runs without MTP and fails with it: llama.cpp exited with code 1" in ran.stderr
    assert noted(file.parent) is not None


def test_a_folder_without_a_runtime_says_which(zoo):
    ran = run("bench", zoo("qwen3_5_text"))
    assert ran.code == 2
    assert "--runtime-python" in ran.stderr


def test_a_report_of_a_bench(file, asked, tmp_path):
    ok("bench", file)
    ran = ok("report", file.parent, "-o", tmp_path / "out")
    assert names(tmp_path / "out") == {"report.html", "report.md", "report.json"}
    assert (
        "Fastest here: Q8_0, 58.0 tokens a second with MTP at n-max 2, 1.45 × its speed without."
        in ran.stdout
    )
    assert "Speed with and without MTP" in (tmp_path / "out" / "report.html").read_text()


def test_report_json_is_the_report(tmp_path):
    ran = ok("report", *large_ladder(tmp_path), "-o", tmp_path / "out", "--json")
    assert ran.json() == json.loads((tmp_path / "out" / "report.json").read_text())
    assert misfits(ReportDocument, ran.json()) == []
    assert ran.json()["title"] == "alice/Tuned"


def test_a_report_beside_a_base(tmp_path):
    ours = receipt(tmp_path / "t", gguf("Q8_0", 1000))
    base = receipt(tmp_path / "b", of_base(gguf("Q8_0", 1000)))
    ran = ok("report", ours, "--compare", base, "-o", tmp_path / "out")
    assert "org/Base: 1 artifact" in ran.stdout
    assert "## alice/Tuned and org/Base" in (tmp_path / "out" / "report.md").read_text()


def test_a_folder_without_receipts_is_3(tmp_path):
    ran = run("report", tmp_path, "-o", tmp_path / "out")
    assert ran.code == 3
    assert "holds no qexport.json" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_files_that_are_gone_or_changed_are_no_longer_called_passed(tmp_path):
    """By a look at their sizes: what receipts say of them is of what was there."""
    made = [
        gguf(label, 10**9 + at, measures=measures(mean, 0.1))
        for at, (label, mean) in enumerate((("Q8_0", 0.001), ("Q4_K_M", 0.02), ("Q2_K", 0.2)))
    ]
    split = entry("gguf", "Q6_K", {"T-00001-of-00002.gguf": 9, "T-00002-of-00002.gguf": 9})
    tower = entry("mmproj", "mmproj-BF16", {"mmproj-BF16.gguf": 9}, verification=None)
    folder = receipt(tmp_path / "x", *made, split, tower)
    assert "All passed verification." in ok("report", folder, "-o", tmp_path / "out").stdout
    for name in ("Tuned-Q8_0.gguf", "T-00002-of-00002.gguf", "mmproj-BF16.gguf"):
        (folder / name).unlink()
    (folder / "Tuned-Q4_K_M.gguf").write_bytes(b"GGUF")
    ran = ok("report", folder, "-o", tmp_path / "out")
    assert (
        "1 passed verification; 2 not there any more (Q6_K, Q8_0); 1 changed since it was written (Q4_K_M)."
    ) in ran.stdout
    assert "mmproj-BF16.gguf, beside them: not there any more." in ran.stdout
    assert "Next:" not in ran.stderr
    found = json.loads((tmp_path / "out" / "report.json").read_text())["models"][0]
    gone, changed = "not there any more", "changed since it was written"
    states = {each["label"]: each["state"] for each in found["artifacts"]}
    assert states == {"Q8_0": gone, "Q4_K_M": changed, "Q2_K": "passed", "Q6_K": gone}
    assert found["lost_beside"] == [{"file": "mmproj-BF16.gguf", "state": gone}]
    page, words = ((tmp_path / "out" / f"report.{each}").read_text() for each in ("html", "md"))
    assert "1 of 4 proven, 2 not there any more, 1 changed since it was written" in page
    assert f"| {gone} |" in words
    assert f"| {gone}: T-00002-of-00002.gguf |" in words
    assert page.count(">passed<") == 2  # the one that is there: on its card, and in the table
    assert "llama-server -m Tuned-Q8_0.gguf" not in page


LIMIT = {"artifact": "Q8_0", "gate": "max_mean_kld", "limit": 0.1, "value": 0.2, "passed": False}


@pytest.mark.parametrize(
    ("made", "following"),
    [
        ([gguf("Q8_0", 9)], "push {here} you/x --dry-run"),
        ([gguf("Q8_0", 9), gguf("Q2_K", 9, verification=UNRUN)], "verify {here}"),
        ([gguf("Q8_0", 9, verification=None)], "verify {here}"),
        (
            [gguf("Q8_0", 9, verification=UNRUN), gguf("Q2_K", 9, verification=FAILED)],
            "verify {here}/Tuned-Q2_K.gguf",
        ),
        ([entry("fp8", "FP8", {"F/model.safetensors": 9}, verification=FAILED)], "verify {here}/F"),
        ([entry("fp8", "FP8", {"model.safetensors": 9}, verification=FAILED)], "verify {here}"),
        ([gguf("Q8_0", 9, gates=[LIMIT])], None),
    ],
)
def test_what_is_proposed_is_what_is_missing(tmp_path, made, following):
    folder = receipt(tmp_path / "x", *made)
    ran = ok("report", folder, "-o", tmp_path / "out")
    found = [line for line in ran.stderr.splitlines() if line.startswith("Next: ")]
    assert found == ([] if following is None else [f"Next: qexport {following.format(here=folder)}"])
