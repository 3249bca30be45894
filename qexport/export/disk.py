"""Is there room, and is anything in the way? Asked before the first byte is written."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from qexport.errors import EnvironmentProblem, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from qexport.formats.plan import ArtifactPlan

__all__ = ["check_collisions", "check_space", "free_bytes", "make_folder"]


def free_bytes(folder: Path) -> int:
    """Free bytes where ``folder`` is or would be."""
    try:
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder.name or folder} cannot be looked into: {error.strerror or error}",
            hint="Choose another --out.",
        ) from error


def make_folder(folder: Path) -> None:
    """Make ``folder`` where it is not there; EnvironmentProblem says why it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"the folder {folder.name or folder} cannot be made: {error.strerror or error}",
            hint="Choose another --out.",
        ) from error


def check_space(plans: Sequence[ArtifactPlan], folder: Path) -> None:
    """Raises EnvironmentProblem when the artifacts are larger than the free space."""
    needed, free = sum(plan.size for plan in plans), free_bytes(folder)
    if needed > free:
        raise EnvironmentProblem(
            f"{needed:,} bytes are needed, but only {free:,} are free at {folder.name or folder}",
            hint="Free some space, choose another --out, or export fewer types at a time.",
        )


def check_collisions(
    names: Sequence[str], folder: Path, *, overwrite: bool, mine: Collection[Path] = ()
) -> None:
    """Raises UsageProblem when two files share a name, or one is there already and may not be replaced.

    Args:
        mine: files (resolved) of an interrupted run, which may always be replaced.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageProblem(
            f"two artifacts would have the name {twice[0]}",
            hint="Put {type} into the file name template.",
        )
    blocked = next((name for name in names if (folder / name).is_dir()), None)
    if blocked is not None:
        raise UsageProblem(f"{blocked} is a folder in {folder.name or folder}", hint="Choose another --out.")
    there = [name for name in names if (folder / name).exists() and (folder / name).resolve() not in mine]
    if there and not overwrite:
        raise UsageProblem(
            f"{', '.join(there[:3])} {'is' if len(there) == 1 else 'are'} already in {folder.name or folder}",
            hint="Add --overwrite to replace, or choose another --out.",
        )
