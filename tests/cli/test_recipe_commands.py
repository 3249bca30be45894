"""`qexport matrix` and `qexport run` as a user meets them."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from document_types import misfits
from in_process import apart, names, ok, run
from safetensors import safe_open

from qexport.cli._documents import CallDocument, SubmittedDocument
from qexport.run import hf_jobs

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
from hub_server import HubServer

RECIPE = """\
source: {{model: {model}, name: Zoo}}
artifacts:
  - gguf: {{types: [Q4_K_M, Q8_0]}}
  - mlx: {{bits: 4}}
  - fp8:
  - nvfp4:
  - merged:
"""

REPORT = ("report.html", "report.json", "report.md")


@pytest.fixture
def recipe(zoo, tmp_path):
    path = tmp_path / "zoo.yaml"
    path.write_text(RECIPE.format(model=zoo("qwen3_5")))
    return path


def test_matrix_for_people(recipe):
    printed = ok("matrix", recipe).stdout
    assert "gguf mlx fp8 nvfp4 merged" in printed
    assert "Sizes from plans; times are estimates" in printed


def test_matrix_for_github_is_one_line_and_its_commands_run(recipe, tmp_path):
    whole = ok("matrix", recipe, "--format", "github").stdout
    assert whole.count("\n") == 1
    (entry,) = json.loads(whole)["include"]
    assert entry["folders"][0] == {"folder": "Zoo-GGUF", "repo": None}
    limit = str(entry["output_bytes"] * 2 // 3)
    split = json.loads(ok("matrix", recipe, "--format", "github", "--max-disk", limit).stdout)["include"]
    assert len(split) > 1
    assert sum(job["output_bytes"] for job in split) == entry["output_bytes"]
    assert len({job["name"] for job in split}) == len(split)
    for job in split:
        words = shlex.split(job["command"])
        assert words[0] == "qexport"
        ok(*words[1:], "--no-verify", "-o", tmp_path / "out")
    found = json.loads(run("matrix", recipe, "--check", tmp_path / "out", "--format", "json").stdout)
    assert [each["state"] for each in found] == ["not run"] * 7
    tower = (
        (tmp_path / "out" / "Zoo-GGUF" / "mmproj-BF16.gguf").stat().st_size
    )  # goes with all, is none itself
    assert sum(each["bytes"] for each in found) + tower == entry["output_bytes"]


def test_all_formats_from_one_pass_and_the_same_as_one_by_one(recipe, tmp_path):
    ok("run", recipe, "--no-verify", "-o", tmp_path / "all")
    assert names(tmp_path / "all") == {
        "Zoo-GGUF", "Zoo-MLX-4bit", "Zoo-MLX-4bit-MTP", "Zoo-FP8", "Zoo-NVFP4", "Zoo-BF16", *REPORT,
    }  # fmt: skip
    for only in ("gguf:Q4_K_M", "mlx", "fp8"):
        ok("run", recipe, "--no-verify", "--only", only, "-o", tmp_path / "each")
    for path in (tmp_path / "each").rglob("*"):
        if path.is_file() and path.name not in ("qexport.json", *REPORT):
            assert path.read_bytes() == (tmp_path / "all" / path.relative_to(tmp_path / "each")).read_bytes()
    with safe_open(tmp_path / "all" / "Zoo-FP8" / "model.safetensors", "pt") as file:
        assert any(name.endswith("_scale_inv") for name in file.keys())  # noqa: SIM118


def test_what_is_there_is_not_written_again(recipe, tmp_path):
    ok("run", recipe, "--only", "fp8", "--no-verify", "-o", tmp_path)
    before = (tmp_path / "Zoo-FP8" / "model.safetensors").stat()
    again = ok("run", recipe, "--only", "fp8", "--no-verify", "-o", tmp_path)
    assert "is there, from the same source and options" in again.stderr
    after = (tmp_path / "Zoo-FP8" / "model.safetensors").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_one_calibration_for_all_and_kept(recipe, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The fox lives in the wood. " * 400)
    words = ("run", recipe, "--no-verify", "-o", tmp_path / "out", "--only", "gguf:Q4_K_M,nvfp4")
    sets = ("--set", f"calibration.corpus={corpus}", "--set", "calibration.tokens=256")
    sets += ("--set", "calibration.chunk=64", "--set", "artifacts.nvfp4.nvfp4.scale_search=importance")
    first = ok(*words, *sets)
    assert first.stderr.count("importance matrix: ") == 1
    assert names(tmp_path / "out" / "Zoo-GGUF") == {
        "Zoo-Q4_K_M.gguf", "Zoo-imatrix.gguf_file", "mmproj-BF16.gguf", "qexport.json",
    }  # fmt: skip
    receipt = json.loads((tmp_path / "out" / "Zoo-NVFP4" / "qexport.json").read_text())
    (artifact,) = receipt["artifacts"]
    assert artifact["options"]["importance"]["calibration"]["tokens"] == 256
    assert str(tmp_path) not in json.dumps(receipt)
    more = ok(*words, *sets, "--only", "mlx", "--set", "artifacts.mlx.importance=true")
    assert "Zoo-imatrix.gguf_file is there" in more.stderr


def test_a_base_beside_it_gets_the_same(recipe, zoo, tmp_path):
    sets = ("--set", f"compare={{model: {zoo('qwen3_5_text')}, name: Base}}", "--only", "gguf:Q8_0")
    ran = ok("run", recipe, *sets, "--no-verify", "-o", tmp_path / "out", "--json")
    assert len(ran.json()) == 2
    assert names(tmp_path / "out") == {"Zoo-GGUF", "Base-GGUF", *REPORT}
    one = ok("run", recipe, *sets, "--only", "compare/gguf:Q8_0", "--dry-run", "--json").json()
    assert {job["only"] for job in one} == {"model/gguf:Q8_0", "compare/gguf:Q8_0"}


def test_dry_run_writes_nothing(recipe, tmp_path):
    said = ok("run", recipe, "--dry-run", "-o", "results").stdout.splitlines()[-1]
    assert said == "Into results: Zoo-GGUF, Zoo-MLX-4bit, Zoo-FP8, Zoo-NVFP4, Zoo-BF16"
    ran = ok("run", recipe, "--dry-run", "-o", tmp_path / "out", "--json")
    (job,) = ran.json()
    assert job["exact"]
    assert not (tmp_path / "out").exists()


def test_hf_jobs_are_rehearsed_without_the_hub(recipe, monkeypatch):
    sets = ("--set", "source.model=org/Model", "--params", "27B", "--max-disk", "130G")
    words = (
        "run",
        recipe,
        "--on",
        "hf-jobs",
        "--hf-bucket",
        "me/x",
        *sets,
        "--dry-run",
        "--json",
        "--hf-install",
        "x",
    )
    found = ok(*words).json()
    assert misfits(list[CallDocument], found) == []
    calls = [call["run_job"] for call in found]
    assert len(calls) > 1
    assert {call["flavor"] for call in calls} == {"cpu-performance"}
    assert all(call["secrets"] == {"HF_TOKEN": "(from this environment)"} for call in calls)
    assert all("--set" in call["command"] for call in calls)
    monkeypatch.setattr(
        hf_jobs, "submit", lambda call: hf_jobs.Submitted(call.job.name, "j1", "https://x/j1")
    )
    sent = ok(*(word for word in words if word != "--dry-run")).json()
    assert misfits(list[SubmittedDocument], sent) == []
    assert len(sent) == len(calls)
    lost = run("run", recipe, "--on", "hf-jobs", *sets, "--dry-run")
    assert lost.code == 2
    assert "would be gone with the job" in lost.stderr


def test_sets_from_the_environment(recipe, monkeypatch):
    monkeypatch.setenv("QEXPORT_SET", "source.name=Other artifacts.mlx.mlx.bits=8")
    (job,) = ok("matrix", recipe, "--format", "json", "--only", "mlx").json()
    assert job["folders"] == [{"folder": "Other-MLX-8bit", "repo": None}]


def test_check_finds_what_is_missing_damaged_and_unproven(recipe, tmp_path):
    out = tmp_path / "out"
    ok("run", recipe, "--only", "fp8,merged", "--no-verify", "-o", out)
    file = out / "Zoo-FP8" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    ran = run("matrix", recipe, "--check", out, "--only", "fp8,merged,mlx")
    assert ran.code == 4
    assert "| model/fp8 | Zoo-FP8 |" in ran.stdout
    assert "damaged (model.safetensors has another hash)" in ran.stdout
    assert "missing (no receipt names it)" in ran.stdout
    excused = ("--set", "artifacts.merged.verify=false", "--only", "merged")
    assert run("matrix", recipe, "--check", out, *excused).code == 0
    (out / "Zoo-BF16" / "config.json").unlink()
    assert "config.json is not there" in run("matrix", recipe, "--check", out, *excused).stdout


def test_wrong_recipes_and_options(recipe, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("source: {modle: x}\n")
    ran = run("run", bad)
    assert ran.code == 2
    assert f"{bad}:1:10: unknown key 'modle'; did you mean 'model'?" in ran.stderr
    assert run("run", tmp_path / "none.yaml").code == 2
    assert run("matrix", recipe, "--only", "gguf:Q9").code == 2
    assert run("matrix", recipe, "--params", "27").code == 2
    assert run("run", recipe, "--runtime-python", "vllm").code == 2
    far = run("matrix", recipe, "--set", "source.model=./nowhere")
    assert far.code == 3
    assert "--params 27B" in far.stderr


def test_sizes_of_a_model_on_the_hub_need_its_headers_only(recipe, zoo, tmp_path):
    folder = zoo("qwen3_5")
    with HubServer() as server:
        server.add("org/Zoo", folder)
        words = ["matrix", recipe, "--set", "source.model=org/Zoo", "--format", "json"]
        ran = apart(*words, environment=server.environment(tmp_path / "home"))
        assert ran.returncode == 0, ran.stderr
        sent = sum(each.sent for each in server.requests if each.path.endswith(".safetensors"))
    (job,) = json.loads(ran.stdout)
    (here,) = ok("matrix", recipe, "--format", "json").json()
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert sent < weights / 10
    assert abs(job["output_bytes"] - here["output_bytes"]) < 2000  # names differ, tensors do not
    assert job["disk_bytes"] - job["output_bytes"] >= weights  # it would have to be downloaded
    assert here["disk_bytes"] == here["output_bytes"]
