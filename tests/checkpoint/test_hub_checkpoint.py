"""The Hub, by the real client against a server on the loopback."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import pytest
import torch
from checkpoint_folders import fingerprint, some_tensors, two_shards, write_folder, write_index
from hub_server import TOKEN, HubServer
from huggingface_hub import constants
from safetensors.torch import save_file
from test_local_checkpoint import all_rows

from qexport.checkpoint.config import read_json
from qexport.checkpoint.hub import HubCheckpoint
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.opening import open_checkpoint
from qexport.errors import EnvironmentProblem, InputError

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.fixture
def served(hub, tmp_path):
    folder = write_folder(tmp_path / "served", two_shards())
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ x }}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    hub.add("org/name", folder)
    return folder


def open_hub(hub, repo="org/name", revision=None):
    return HubCheckpoint(repo, revision, endpoint=hub.endpoint)


def test_headers_are_enough(hub, served):
    checkpoint = open_hub(hub)
    local = LocalCheckpoint(served)
    sha = hub.repos["org/name"].sha
    assert (checkpoint.sha, checkpoint.label) == (sha, f"org/name@{sha[:8]}")
    assert dict(checkpoint.tensors) == dict(local.tensors)
    assert list(checkpoint.tensors) == list(local.tensors)
    assert dict(checkpoint.files) == dict(local.files)
    assert read_json(checkpoint, "config.json") == read_json(local, "config.json")
    assert checkpoint.read_file("additional_chat_templates/rag.jinja") == b"{{ x }}"
    with pytest.raises(InputError, match="not downloaded") as caught:
        checkpoint.read_rows("embed.weight", 0, 1)
    assert "download()" in caught.value.hint
    with pytest.raises(InputError, match="has no file pytorch_model"):
        checkpoint.read_file("pytorch_model.bin")


def test_no_weights_cross_the_wire_for_headers(hub, tmp_path):
    """Megabytes of weights, a header longer than the first range, and only headers are sent."""
    tensors = {f"layer.{n:05d}.weight": torch.ones(1024).bfloat16() for n in range(2000)}
    folder = write_folder(tmp_path / "served", [tensors])
    hub.add("org/name", folder)
    size = (folder / "model.safetensors").stat().st_size
    checkpoint = open_hub(hub)
    assert len(checkpoint.tensors) == 2000
    start = min(tensor.start for tensor in checkpoint.tensors.values())
    assert 1 << 17 < start < size // 10
    assert hub.body_bytes("model.safetensors") == start
    assert checkpoint.download_size == sum(p.stat().st_size for p in folder.iterdir())


def test_a_server_that_ignores_ranges(hub, served):
    hub.ignore_ranges = True
    assert dict(open_hub(hub).tensors) == dict(LocalCheckpoint(served).tensors)


def test_download(hub, served):
    before = fingerprint(served)
    checkpoint = open_hub(hub)
    seen = []
    local = checkpoint.download(lambda done, total: seen.append((done, total)))
    assert isinstance(local, LocalCheckpoint)
    assert local.label == checkpoint.label
    assert all_rows(local) == all_rows(LocalCheckpoint(served))
    assert dict(local.files) == dict(checkpoint.files)
    assert not any(r.path.endswith(("pytorch_model.bin", "model.onnx")) for r in hub.requests)
    total = checkpoint.download_size
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert fingerprint(served) == before
    sent = {name: hub.body_bytes(name) for name in SHARDS}
    again = open_hub(hub).download(lambda done, total: None)
    assert all_rows(again) == all_rows(local)
    headers = {name: min((served / name).stat().st_size, 1 << 17) for name in SHARDS}
    assert {name: hub.body_bytes(name) - sent[name] for name in SHARDS} == headers


def test_a_connection_that_breaks(hub, tmp_path, monkeypatch):
    # The client keeps what arrived in steps of this; its own 10 MB are more than is here.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 18)
    folder = write_folder(tmp_path / "served", [{"a": torch.randn(2000, 1024).bfloat16()}])
    hub.add("org/name", folder)
    checkpoint = open_hub(hub)
    hub.requests.clear()
    hub.cuts["model.safetensors"] = 3_000_000
    local = checkpoint.download(lambda done, total: None)
    assert all_rows(local) == all_rows(LocalCheckpoint(folder))
    ranges = [r.range for r in hub.requests if r.method == "GET" and r.path.endswith("model.safetensors")]
    assert len(ranges) == 2
    assert ranges[0] is None
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) > 1_000_000


def test_what_was_complete_is_kept(hub, served):
    checkpoint = open_hub(hub)
    hub.failures[SHARDS[1]] = 404
    with pytest.raises(InputError, match="is not there"):
        checkpoint.download(lambda done, total: None)
    del hub.failures[SHARDS[1]]
    hub.requests.clear()
    seen = []
    checkpoint.download(lambda done, total: seen.append(done))
    fetched = {r.path.rsplit("/", 1)[1] for r in hub.requests if r.method == "GET"}
    assert SHARDS[1] in fetched
    assert SHARDS[0] not in fetched
    assert seen[0] > (served / SHARDS[0]).stat().st_size


def test_the_commit_is_held(hub, served):
    checkpoint = open_hub(hub)
    (served / "config.json").write_text('{"model_type": "other"}')
    hub.add("org/name", served)
    assert open_hub(hub).sha != checkpoint.sha
    assert read_json(checkpoint, "config.json")["model_type"] == "qwen3"  # read when it was opened
    with pytest.raises(InputError, match="no revision"):
        checkpoint.download(lambda done, total: None)


def test_revisions(hub, served):
    sha = hub.add("org/name", served, branches=("main", "v1", "pr/1")).sha
    for revision in ("v1", "pr/1", sha):
        assert open_hub(hub, revision=revision).sha == sha
    with pytest.raises(InputError, match=r"org/name has no revision 'v2'\.") as caught:
        open_hub(hub, revision="v2")
    assert "branch" in caught.value.hint


def test_gated(hub, served, monkeypatch):
    hub.add("org/name", served, access="gated")
    with pytest.raises(InputError, match="org/name is gated") as caught:
        open_hub(hub)
    assert "hf auth login" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert open_hub(hub).tensors


def test_private_or_missing(hub, served, monkeypatch):
    hub.add("org/name", served, access="private")
    for repo in ("org/name", "org/absent"):
        with pytest.raises(
            InputError, match=f"There is no repository {repo} on the Hub, or it is private"
        ) as caught:
            open_hub(hub, repo)
        assert "hf auth login" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert all_rows(open_hub(hub).download(lambda done, total: None))


def test_a_bad_name(hub):
    with pytest.raises(InputError, match="not a valid repository id"):
        open_hub(hub, "a--b/c..d")


def test_nobody_answers(hub, served):
    with HubServer() as gone:
        endpoint = gone.endpoint
    with pytest.raises(
        EnvironmentProblem, match=r"org/name cannot be reached: no answer from the Hub \("
    ) as caught:
        HubCheckpoint("org/name", endpoint=endpoint)
    assert "network" in caught.value.hint


def test_not_a_hub(hub, monkeypatch):
    """A proxy's login page, say: 200 and no JSON."""
    monkeypatch.setattr(hub, "page", b"<html>please log in</html>")
    with pytest.raises(EnvironmentProblem, match="the answer is not a Hub's"):
        open_hub(hub)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (403, InputError, "org/name is not open to this account (HTTP 403)"),
        (429, EnvironmentProblem, "limits how often org/name may be asked for"),
        (502, EnvironmentProblem, "The Hub failed to serve org/name (HTTP 502)"),
    ],
)
def test_other_statuses(hub, status, kind, message):
    hub.status = status
    with pytest.raises(kind) as caught:
        open_hub(hub)
    assert message in caught.value.message
    assert caught.value.hint


def test_offline(hub, served, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(EnvironmentProblem, match="HF_HUB_OFFLINE is set"):
        open_checkpoint("org/name")


def test_offline_with_an_earlier_download(hub, served, monkeypatch):
    open_checkpoint("org/name").download(lambda done, total: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    checkpoint = open_checkpoint("org/name")
    assert checkpoint.label == f"org/name@{hub.repos['org/name'].sha[:8]}"
    assert all_rows(checkpoint) == all_rows(LocalCheckpoint(served))


def test_no_room(hub, served, monkeypatch):
    checkpoint = open_hub(hub)
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr("qexport.checkpoint.hub_client.shutil.disk_usage", lambda path: usage)
    with pytest.raises(EnvironmentProblem, match="whose disk has 10 free"):
        checkpoint.download()


def truncated(folder):
    (folder / SHARDS[0]).write_bytes((folder / SHARDS[0]).read_bytes()[:-9])


def quantized(folder):
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    packed = {"layer.0.qweight": torch.ones(2, 2, dtype=torch.int32)}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(packed, folder / "model.safetensors")


REFUSED = {
    "truncated": (truncated, "9 missing"),
    "missing shard": (lambda f: (f / SHARDS[1]).unlink(), f"missing: {SHARDS[1]}"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "outside": (lambda f: write_index(f, {"a": "../x.safetensors"}), "not the plain name"),
    "quantized": (
        quantized,
        "already quantized: config.json has quantization_config (quant_method: awq)",
    ),
    "pickles": (
        lambda f: [p.unlink() for p in f.glob("*.safetensors*")],
        "as pickles only (pytorch_model.bin)",
    ),
    "lfs pointer": (
        lambda f: (f / SHARDS[0]).write_text("version https://git-lfs.github.com/spec/v1"),
        "LFS",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_as_a_folder_is(case, hub, served):
    change, message = REFUSED[case]
    change(served)
    hub.add("org/name", served)
    with pytest.raises(InputError) as here:
        LocalCheckpoint(served, label=f"org/name@{hub.repos['org/name'].sha[:8]}")
    with pytest.raises(InputError) as there:
        open_hub(hub)
    assert message in there.value.message
    assert str(there.value) == str(here.value)


def test_a_hub_from_the_environment(tmp_path):
    """HF_ENDPOINT and HF_HOME, in a process of its own, through the front door."""
    folder = write_folder(tmp_path / "served", [some_tensors()])
    program = (
        "from qexport.checkpoint.opening import open_checkpoint\n"
        "local = open_checkpoint('org/name', revision='v1').download()\n"
        "print(local.label, float(local.read_rows('layer.0.scale', 0, 1)))\n"
    )
    with HubServer() as hub:
        sha = hub.add("org/name", folder, branches=("main", "v1")).sha
        environment = hub.environment(tmp_path / "home")
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout == f"org/name@{sha[:8]} 0.5\n", done.stderr
    assert threading.active_count() < 50
