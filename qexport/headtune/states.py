"""The trunk's states of a whole text, in bf16, in a file that outlives the run.

The trunk is run once; tuning reads its states many times, in any order. A file's name is the hash of what it
was made from (weights as they lie on disk, tokens, arithmetic), and it gets that name when it is complete. So
whoever comes again with the same finds it, and nobody takes another's.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.tensors import checkpoints_of
from qexport.errors import EnvironmentProblem, InputError
from qexport.families.roles import Block
from qexport.onepass.files import temporary_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

    from qexport.evidence.chained import HeadStream
    from qexport.families.view import ModelView
    from qexport.progress import Progress


class States:
    """States after the trunk's final norm, bf16 ``(chunks, chunk, width)``, mapped from their file."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        import torch

        self.path, self.shape = path, shape
        size = shape[0] * shape[1] * shape[2]
        self._values = torch.from_file(str(path), shared=False, size=size, dtype=torch.bfloat16).view(shape)

    def of(self, chunks: Sequence[int], device: Any = "cpu") -> torch.Tensor:
        """Float32 ``(chunks, chunk, width)``."""
        return self._values[list(chunks)].to(device).float()

    @property
    def sha256(self) -> str:
        """Of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(view: ModelView, ids: np.ndarray, precision: str, device: str) -> str:
    """What states follow from: the trunk's weights as they lie on disk, the tokens, the arithmetic."""
    from qexport import __version__

    trunk = (tensor.data for tensor in view if tensor.block is not Block.MTP)
    known = [[each.label, each.identity()] for each in checkpoints_of(trunk)]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    digest.update(ids.astype("<i4").tobytes())
    digest.update(json.dumps([list(ids.shape), precision, device, __version__]).encode())
    digest.update(json.dumps(dict(view.text), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def states_of(stream: HeadStream, ids: np.ndarray, folder: Path, progress: Progress | None = None) -> States:
    """The states of ``ids``, made now or found in ``folder``.

    Raises:
        InputError: a state is not finite: the trunk's weights are damaged.
        EnvironmentProblem: there is no room for the file.
    """
    import torch

    from qexport.evidence.observe import Observer

    key = key_of(stream.view, ids, stream.precision, stream.options.device)
    path = folder / f"states-{key[:32]}.bf16"
    shape = (*ids.shape, stream.width)
    size = 2 * shape[0] * shape[1] * shape[2]
    if path.is_file() and path.stat().st_size == size:
        return States(path, shape)
    part = path.with_name(temporary_name(path.name))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)

            def keep(start: int, hidden: torch.Tensor) -> None:
                if not bool(torch.isfinite(hidden).all()):
                    raise InputError(
                        f"{stream.view.label}: what leaves the trunk is not finite; its weights are damaged",
                        hint="Merge again in float32, or from an earlier checkpoint.",
                    )
                rounded = hidden.to("cpu", torch.bfloat16).contiguous()
                file.seek(2 * start * shape[1] * shape[2])
                file.write(rounded.view(-1).view(torch.uint8).numpy().data)

            stream.trunk(ids, Observer(), final=keep, progress=progress)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        words = f"{size / 1e9:.1f} GB of states do not fit" if full else f"{error.strerror or error}"
        raise EnvironmentProblem(
            f"states cannot be kept: {words}", hint="Name a folder with room for them: --spill FOLDER."
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return States(path, shape)
