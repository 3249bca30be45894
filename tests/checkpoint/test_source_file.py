"""Storage that fails while it is read is an error that names the file, and never the end of the process."""

import errno
import gc
import os
from pathlib import Path

import pytest
import torch
from checkpoint_folders import write_folder

from qexport.checkpoint.header import read_header
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.paths import open_regular, read_small
from qexport.errors import EnvironmentProblem, InputError, QexportError


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "model", [{"a": torch.arange(4096.0).view(512, 8)}])


def test_a_file_that_is_cut_short_while_it_is_read(folder):
    checkpoint = LocalCheckpoint(folder)
    first = checkpoint.read_rows("a", 0, 8)
    os.truncate(folder / "model.safetensors", 4096)
    with pytest.raises(EnvironmentProblem, match=r"^model\.safetensors became shorter .* ends at byte 4096"):
        checkpoint.read_rows("a", 0, 512)
    assert torch.equal(first.view(-1), torch.arange(64.0))  # what was read is ours


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_disk_or_a_share_that_fails(folder, monkeypatch, number):
    checkpoint = LocalCheckpoint(folder)

    def preadv(fd, buffers, offset):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(EnvironmentProblem, match=r"^model\.safetensors cannot be read: ") as caught:
        checkpoint.read_rows("a", 0, 1)
    assert os.strerror(number) in caught.value.message
    assert "start again" in caught.value.hint


def test_reads_that_give_less_than_was_asked_for(folder, monkeypatch):
    checkpoint = LocalCheckpoint(folder)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:700]], at))
    assert torch.equal(checkpoint.read_rows("a", 3, 512).view(-1), torch.arange(24.0, 4096.0))


def test_a_file_that_is_replaced_goes_on_as_it_was(folder):
    checkpoint = LocalCheckpoint(folder)
    checkpoint.read_rows("a", 0, 1)
    other = write_folder(folder.parent / "other", [{"a": torch.zeros(512, 8)}])
    (other / "model.safetensors").replace(folder / "model.safetensors")
    assert checkpoint.read_rows("a", 511, 512)[0, 7] == 4095.0


def test_files_are_closed(folder):
    def mine():
        links = [path for path in Path("/proc/self/fd").iterdir() if path.exists()]
        return sum(path.resolve().is_relative_to(folder) for path in links)

    checkpoint = LocalCheckpoint(folder)
    assert mine() == 0
    checkpoint.read_rows("a", 0, 1)
    assert mine() == 1
    del checkpoint
    gc.collect()
    assert mine() == 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    try:
        LocalCheckpoint(folder)
    except QexportError:
        assert name != "tokenizer.json"
    else:
        assert name == "tokenizer.json"
        assert name not in LocalCheckpoint(folder).files


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match=r"^it is not a regular file"):
            open_regular(path, "it")
        with pytest.raises(InputError, match="is not a regular file"):
            read_header(path, file="it")


def test_a_small_file_has_a_limit(tmp_path):
    (tmp_path / "config.json").write_bytes(b"x" * 11)
    assert read_small(tmp_path / "config.json", "it", limit=11) == b"x" * 11
    with pytest.raises(InputError, match=r"^it is larger than 10 bytes"):
        read_small(tmp_path / "config.json", "it", limit=10)
    with pytest.raises(InputError, match=r"^it cannot be read: No such file"):
        read_small(tmp_path / "none", "it")
