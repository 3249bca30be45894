"""Hidden states of the whole calibration text between two layers: in memory, or in a file above a limit.

64 thousand tokens of a model 5120 wide are 1.3 GB of float32. They are read and written a batch at a time,
in place, so a file serves as well as memory. It has no name, so nothing is left to clean up whatever happens,
and its room is claimed before the pass begins, so a full disk is an error at the start.
"""

from __future__ import annotations

import errno
import math
import os
import tempfile
from copy import copy
from typing import TYPE_CHECKING, Any, BinaryIO

from qexport.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch


class HiddenStates:
    """Float32 ``(chunks, tokens, width)``; to be closed.

    Args:
        shape: chunks, tokens, width.
        limit: bytes that may stay in memory; more goes to a file.
        folder: where that file is; the system's folder for temporary files by default.

    Raises:
        EnvironmentProblem: there is no room for the file.
    """

    def __init__(self, shape: tuple[int, int, int], *, limit: int, folder: Path | None = None) -> None:
        import torch

        self.shape = shape
        self.nbytes = 4 * math.prod(shape)
        self._file: BinaryIO | None = None
        self._memory: torch.Tensor | None = None
        if self.nbytes > limit:
            self._file = _claim(self.nbytes, folder)
        else:
            self._memory = torch.empty(self.shape, dtype=torch.float32)

    @property
    def spilled(self) -> bool:
        """Whether they are in a file."""
        return self._file is not None

    def close(self) -> None:
        """Give memory and disk back."""
        self._memory = None
        if self._file is not None:
            self._file.close()

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Chunks ``[start, stop)`` on the CPU; a view where they are in memory."""
        import torch

        if self._memory is not None:
            return self._memory[start:stop]
        part = torch.empty((stop - start, *self.shape[1:]), dtype=torch.float32)
        assert self._file is not None
        self._file.seek(self._offset(start))
        if self._file.readinto(part.view(-1).view(torch.uint8).numpy().data) != part.nbytes:  # type: ignore[attr-defined]
            raise EnvironmentProblem("the file with spilled activations ended early")
        return part

    def of(self, chunks: Sequence[int], device: Any = "cpu") -> torch.Tensor:
        """These chunks, which follow one another, on a device."""
        return self.read(chunks[0], chunks[-1] + 1).to(device)

    def front(self, chunks: int) -> HiddenStates:
        """The first so many chunks, where they are; nothing to be closed."""
        part = copy(self)
        part.shape = (chunks, *self.shape[1:])
        part._memory = None if self._memory is None else self._memory[:chunks]
        return part

    def write(self, start: int, states: torch.Tensor) -> None:
        """Put ``states``, ``(chunks, tokens, width)``, in the place of as many chunks from ``start`` on.

        Raises:
            EnvironmentProblem: the disk is full or fails.
        """
        import torch

        if self._memory is not None:
            self._memory[start : start + len(states)] = states
            return
        part = states.to("cpu", torch.float32).contiguous()
        assert self._file is not None
        try:
            self._file.seek(self._offset(start))
            self._file.write(part.view(-1).view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise _problem(error, self.nbytes) from error

    def _offset(self, chunk: int) -> int:
        return 4 * chunk * self.shape[1] * self.shape[2]


def _claim(nbytes: int, folder: Path | None) -> BinaryIO:
    try:
        file = tempfile.TemporaryFile(prefix="qexport-", dir=folder)  # noqa: SIM115  # HiddenStates closes it
    except OSError as error:
        raise _problem(error, nbytes) from error
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, nbytes)
    except OSError as error:
        file.close()
        raise _problem(error, nbytes) from error
    return file


def _problem(error: OSError, nbytes: int) -> EnvironmentProblem:
    hint = "Use fewer calibration tokens, allow more memory (--activation-memory), or set TMPDIR."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem(
            f"{nbytes / 1e9:.1f} GB of activations do not fit where temporary files go", hint=hint
        )
    return EnvironmentProblem(f"activations cannot be spilled: {error.strerror or error}", hint=hint)
