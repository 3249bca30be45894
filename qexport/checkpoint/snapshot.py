"""Folders of a Hub cache (``models--org--name/snapshots/<commit>``): which repository and commit they are.

https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qexport.errors import InputError

_REPO = re.compile(r"models--(?P<repo>[\w.-]+)", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Snapshot:
    """A repository at a commit, labelled as when it is read from the Hub itself."""

    repo: str
    commit: str

    @property
    def label(self) -> str:
        return f"{self.repo}@{self.commit[:8]}"


def snapshot_of(folder: Path) -> Snapshot | None:
    """What ``folder``, or the folder that it links to, is a snapshot of; ``None`` for any other folder."""
    for path in (folder.absolute(), folder.resolve()):
        where = _REPO.fullmatch(path.parent.parent.name)
        if where and path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name):
            return Snapshot(where["repo"].replace("--", "/", 1), path.name)
    return None


def snapshot_folder(folder: Path) -> Path:
    """The snapshot that is meant where a repository's folder in the cache is given; else ``folder`` itself.

    Raises:
        InputError: there are several, and no ``refs/main`` says which.
    """
    inside = folder.resolve()
    snapshots = inside / "snapshots"
    if _REPO.fullmatch(inside.name) is None or not snapshots.is_dir():
        return folder
    found = sorted(path for path in snapshots.iterdir() if _COMMIT.fullmatch(path.name) and path.is_dir())
    main = inside / "refs" / "main"
    # A commit is 40 characters; what is longer is no reference.
    named = main.read_text(errors="replace")[:64].strip() if main.is_file() else ""
    chosen = [path for path in found if path.name == named] or (found if len(found) == 1 else [])
    if not chosen:
        commits = ", ".join(path.name[:8] for path in found) or "none"
        raise InputError(
            f"{folder.name} is a repository in the Hub's cache, and which snapshot is meant is not said.",
            hint=f"Give the folder of one, below {folder.name}/snapshots (there are: {commits}).",
        )
    return chosen[0]
