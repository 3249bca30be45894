"""A folder, a repository, or neither; and what importing costs."""

import subprocess
import sys

import pytest
from checkpoint_folders import some_tensors, write_folder

from qexport.checkpoint import HubCheckpoint, LocalCheckpoint, open_checkpoint
from qexport.errors import InputError, UsageProblem


def test_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "org" / "name", [some_tensors()])
    checkpoint = open_checkpoint("org/name")  # a folder here wins over a repository
    assert isinstance(checkpoint, LocalCheckpoint)
    assert checkpoint.label == "name"
    with pytest.raises(UsageProblem, match="no revision 'v1'"):
        open_checkpoint("org/name", revision="v1")


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
