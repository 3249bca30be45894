"""MODEL as a Hub id: planned from headers, downloaded for an export, the same bytes as from a folder."""

import json
import sys
from pathlib import Path

import pytest
from in_process import apart

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
from hub_server import HubServer


@pytest.fixture
def served(zoo, tmp_path):
    """(run, server, folder): the command line as a process of its own that sees only this Hub."""
    folder = zoo("qwen3_5")
    with HubServer() as server:
        server.add("org/Tuned-4B", folder)
        environment = server.environment(tmp_path / "home")

        def run(*words):
            return apart(*words, environment=environment)

        yield run, server, folder


def weight_bytes(server):
    return sum(request.sent for request in server.requests if request.path.endswith(".safetensors"))


def test_inspect_and_dry_run_download_no_weights(served):
    run, server, folder = served
    inspected = run("inspect", "org/Tuned-4B", "--json")
    assert inspected.returncode == 0, inspected.stderr
    local = json.loads(run("inspect", folder, "--json").stdout)
    remote = json.loads(inspected.stdout)
    assert remote["parameters"] == local["parameters"]
    # Names differ in length, and so do headers that hold them; the tensors weigh the same.
    assert [w["bits_per_weight"] for w in remote["formats"]] == [
        w["bits_per_weight"] for w in local["formats"]
    ]
    planned = run("gguf", "org/Tuned-4B", "-q", "Q4_K_M", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    artifact, tower = json.loads(planned.stdout)["artifacts"]
    assert tower["kind"] == "mmproj"
    assert artifact["files"][0]["name"] == "Tuned-4B-Q4_K_M.gguf"
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert weight_bytes(server) < total / 10


def test_export_of_a_hub_model(served, tmp_path):
    run, _, folder = served
    options = ("-q", "Q8_0", "--no-verify", "--model-name", "Same")
    far = run("gguf", "org/Tuned-4B", *options, "-o", tmp_path / "far")
    assert far.returncode == 0, far.stderr
    near = run("gguf", folder, *options, "-o", tmp_path / "near")
    assert near.returncode == 0, near.stderr
    name = "Same-Q8_0.gguf"
    a, b = (tmp_path / "far" / name).read_bytes(), (tmp_path / "near" / name).read_bytes()
    tensors = 1 << 20  # beyond both headers, which differ in the organization that a Hub id names
    assert a[-tensors:] == b[-tensors:]
    receipt = json.loads((tmp_path / "far" / "qexport.json").read_text())
    source = receipt["artifacts"][0]["source"]
    assert source["label"] == f"org/Tuned-4B@{source['revision'][:8]}"
    assert len(source["revision"]) == 40


def test_what_is_grafted_needs_only_its_own_shards(served, zoo, tmp_path):
    """The base has two shards; head and tower are in the second."""
    run, server, base = served
    shards = sorted(base.glob("*.safetensors"))
    assert len(shards) == 2
    merged = zoo("qwen3_5_text")
    far = run("fix", merged, "--base", "org/Tuned-4B", "-o", tmp_path / "far")
    assert far.returncode == 0, far.stderr
    near = run("fix", merged, "--base", base, "-o", tmp_path / "near")
    assert near.returncode == 0, near.stderr
    weights = sorted(path.name for path in (tmp_path / "far").glob("*.safetensors"))
    assert len(weights) == 2
    for name in (*weights, "config.json", "preprocessor_config.json"):
        assert (tmp_path / "far" / name).read_bytes() == (tmp_path / "near" / name).read_bytes()
    whole = {
        request.path.rsplit("/", 1)[1]
        for request in server.requests
        if request.path.endswith(".safetensors") and request.sent > 200_000
    }
    assert whole == {shards[1].name}


def test_a_model_that_the_hub_does_not_have(served):
    run, _, _ = served
    result = run("inspect", "org/Nothing")
    assert result.returncode in (3, 6)
    assert "Traceback" not in result.stderr
    assert "org/Nothing" in result.stderr
