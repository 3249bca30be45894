"""Hidden states in memory and in a file without a name: the same numbers, and errors that help."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from qexport.errors import EnvironmentProblem
from qexport.evidence.activations import HiddenStates

SHAPE = (7, 5, 3)
NBYTES = 4 * 7 * 5 * 3


def states(limit: int, folder: Path | None = None) -> closing[HiddenStates]:
    return closing(HiddenStates(SHAPE, limit=limit, folder=folder))


@pytest.mark.parametrize("limit", [0, NBYTES - 1, NBYTES, 10**9])
def test_what_is_written_is_read(tmp_path: Path, limit: int) -> None:
    """In batches of two, the last of one, twice over, read in other batches."""
    with states(limit, tmp_path) as hidden:
        assert hidden.spilled == (limit < NBYTES)
        assert hidden.nbytes == NBYTES
        for factor in (1.0, -2.5):
            values = torch.arange(7.0 * 5 * 3).view(SHAPE) * factor
            for start in range(0, 7, 2):
                hidden.write(start, values[start : start + 2])
            for start in range(0, 7, 3):
                assert torch.equal(hidden.read(start, min(7, start + 3)), values[start : start + 3])
        hidden.write(3, torch.zeros(1, 5, 3))
        assert torch.equal(hidden.read(2, 3), values[2:3])
        assert torch.equal(hidden.read(3, 4), torch.zeros(1, 5, 3))
        assert torch.equal(hidden.read(4, 5), values[4:5])
        assert list(tmp_path.iterdir()) == []  # the file has no name


@pytest.mark.parametrize("limit", [0, 10**9])
def test_other_dtypes_and_strides_are_converted(tmp_path: Path, limit: int) -> None:
    part = torch.arange(30.0).view(3, 5, 2).transpose(0, 2).to(torch.bfloat16)  # (2, 5, 3), not contiguous
    with states(limit, tmp_path) as hidden:
        hidden.write(1, part)
        found = hidden.read(1, 3)
        assert found.dtype == torch.float32
        assert torch.equal(found, part.float())


def test_its_room_is_claimed_at_once(tmp_path: Path) -> None:
    with states(0, tmp_path) as hidden:
        assert hidden._file is not None
        assert os.fstat(hidden._file.fileno()).st_blocks * 512 >= NBYTES


def test_closing_gives_everything_back(tmp_path: Path) -> None:
    for limit in (0, 10**9):
        with states(limit, tmp_path) as hidden:
            pass
        assert hidden._memory is None
        assert hidden._file is None or hidden._file.closed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_an_error_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    opened: list[Any] = []
    real = tempfile.TemporaryFile

    def keep(**options: Any) -> Any:
        opened.append(real(**options))
        return opened[-1]

    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", keep)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(EnvironmentProblem, match="GB of activations do not fit") as caught:
        HiddenStates(SHAPE, limit=0, folder=tmp_path)
    assert "--activation-memory" in str(caught.value)
    assert opened[0].closed


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be spilled: No such file"):
        HiddenStates(SHAPE, limit=0, folder=tmp_path / "absent")


def test_a_disk_that_fails_in_the_middle(tmp_path: Path) -> None:
    class Failing:
        def seek(self, _: int) -> None: ...

        def write(self, _: Any) -> None:
            raise OSError(errno.EIO, "Input/output error")

        def close(self) -> None: ...

    with states(0, tmp_path) as hidden:
        assert hidden._file is not None
        hidden._file.close()
        hidden._file = Failing()  # type: ignore[assignment]
        with pytest.raises(EnvironmentProblem, match="cannot be spilled: Input/output error"):
            hidden.write(0, torch.zeros(1, 5, 3))


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    with states(0, tmp_path) as hidden:
        assert hidden._file is not None
        os.ftruncate(hidden._file.fileno(), NBYTES - 4)
        with pytest.raises(EnvironmentProblem, match="ended early"):
            hidden.read(6, 7)
