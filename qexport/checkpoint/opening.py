"""From what the user typed to a checkpoint: a folder here, or a repository on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from qexport.checkpoint.hub import HubCheckpoint
from qexport.checkpoint.hub_client import cached_folder
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.paths import snapshot_folder
from qexport.checkpoint.tensors import Checkpoint
from qexport.errors import EnvironmentProblem, InputError, UsageProblem

# Two parts, as the Hub writes names: https://huggingface.co/docs/hub/repositories-getting-started
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def open_checkpoint(spec: str, *, revision: str | None = None) -> Checkpoint:
    """Open ``spec``: a path that exists, else a Hub id ``org/name``.

    A Hub checkpoint comes with headers only; its ``download()`` returns one whose weights can be read. When
    the Hub cannot be reached, an earlier download in the cache is opened instead.

    Args:
        spec: what the user typed.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        InputError: it is neither, or cannot be exported from.
        UsageProblem: a revision was given for a folder.
        EnvironmentProblem: the Hub cannot be reached.
    """
    if _exists(spec):
        if revision is not None:
            message = f"{spec} is a folder here, which has no revision {revision!r}."
            raise UsageProblem(message, hint="Leave the revision out, or give a Hub repository as org/name.")
        return LocalCheckpoint(snapshot_folder(Path(spec)))
    if _REPO.fullmatch(spec):
        try:
            return HubCheckpoint(spec, revision)
        except (InputError, EnvironmentProblem) as error:
            earlier = _earlier_download(spec, revision) if isinstance(error, EnvironmentProblem) else None
            if earlier is not None:
                return earlier
            # Only now: a folder that is mistyped as a/b looks like a repository until the Hub is asked.
            error.hint = f"{error.hint or ''} (There is no folder {spec} here either.)".strip()
            raise
    message = f"{spec!r} is neither a folder that exists here nor a Hub repository (org/name)."
    raise InputError(message, hint="Check the path, or give a repository such as Qwen/Qwen3.5-9B.")


def _earlier_download(repo: str, revision: str | None) -> LocalCheckpoint | None:
    """The cached snapshot of a repository, where it is complete enough to be opened."""
    folder = cached_folder(repo, revision)
    if folder is None:
        return None
    try:
        return LocalCheckpoint(folder)
    except InputError:  # only small files are there: what is wrong is still that the Hub is out of reach
        return None


def _exists(spec: str) -> bool:
    try:
        return bool(spec) and Path(spec).exists()
    except (OSError, ValueError):  # a name too long, or one with a NUL
        return False
