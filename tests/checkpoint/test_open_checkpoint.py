"""A folder, a repository, or neither; and what importing costs."""

import hashlib
import subprocess
import sys

import pytest
from checkpoint_folders import some_tensors, write_folder

from qexport.checkpoint.hub import HubCheckpoint
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.opening import open_checkpoint
from qexport.errors import InputError, UsageProblem


def test_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "org" / "name", [some_tensors()])
    checkpoint = open_checkpoint("org/name")  # a folder here wins over a repository
    assert isinstance(checkpoint, LocalCheckpoint)
    assert checkpoint.label == "name"
    with pytest.raises(UsageProblem, match="no revision 'v1'"):
        open_checkpoint("org/name", revision="v1")


COMMIT = "0123abcd" * 5


@pytest.fixture
def cache(tmp_path):
    """A repository's folder in a Hub cache, with two commits; files are links to blobs, as there."""
    repo = tmp_path / "hub" / "models--org--na.me-1"
    for commit in (COMMIT, "f" * 40):
        made = write_folder(tmp_path / "made", [some_tensors()])
        (repo / "blobs").mkdir(parents=True, exist_ok=True)
        (repo / "snapshots" / commit).mkdir(parents=True)
        for path in made.iterdir():
            blob = hashlib.sha1(f"{commit} {path.name}".encode()).hexdigest()
            path.rename(repo / "blobs" / blob)
            (repo / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{blob}")
    return repo


@pytest.mark.parametrize("how", ["plain", "slash", "dot", "link", "link to a parent", "inside"])
def test_a_snapshot_in_the_hubs_cache_is_named_after_its_repository(cache, tmp_path, monkeypatch, how):
    snapshot = cache / "snapshots" / COMMIT
    (tmp_path / "link").symlink_to(snapshot)
    (tmp_path / "cache").symlink_to(cache.parent)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(snapshot if how == "inside" else tmp_path / "work")
    spec = {
        "plain": str(snapshot),
        "slash": f"{snapshot}/",
        "dot": f"{snapshot}/.",
        "link": "../link",
        "link to a parent": f"../cache/{cache.name}/snapshots/{COMMIT}/",
        "inside": ".",
    }[how]
    checkpoint = open_checkpoint(spec)
    assert checkpoint.label == "org/na.me-1@0123abcd"
    assert checkpoint.revision == COMMIT


def test_the_repositorys_folder_in_the_cache_is_the_commit_of_main(cache):
    with pytest.raises(InputError, match="which snapshot is meant is not said") as caught:
        open_checkpoint(str(cache))
    assert "0123abcd, ffffffff" in caught.value.hint
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    assert open_checkpoint(f"{cache}/").label == "org/na.me-1@0123abcd"


@pytest.mark.parametrize(
    "name", ["models--org--x/snapshots/main", f"models--org--x/{COMMIT}", f"x/snapshots/{COMMIT}"]
)
def test_other_folders_keep_their_names(tmp_path, name):
    checkpoint = open_checkpoint(str(write_folder(tmp_path / name, [some_tensors()])))
    assert checkpoint.label == name.rsplit("/", 1)[-1]
    assert checkpoint.revision is None


def test_a_repository(hub, tmp_path):
    hub.add("org/na.me-1", write_folder(tmp_path / "served", [some_tensors()]))
    checkpoint = open_checkpoint("org/na.me-1", revision="main")
    assert isinstance(checkpoint, HubCheckpoint)
    with pytest.raises(InputError, match="There is no repository org/absent") as caught:
        open_checkpoint("org/absent")
    assert "There is no folder org/absent here either" in caught.value.hint


@pytest.mark.parametrize(
    "spec", ["", "name", "a/b/c", "./a", "../a", "/no/such", "a\0b", "a/b ", "x" * 5000, "~/m"]
)
def test_neither(spec):
    with pytest.raises(
        InputError, match=r"is neither a folder that exists here nor a Hub repository \(org/name\)"
    ):
        open_checkpoint(spec)


def test_importing_is_light():
    program = (
        "import sys, qexport.checkpoint; "
        "print(sorted({'torch', 'numpy', 'huggingface_hub', 'httpx', 'safetensors'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
