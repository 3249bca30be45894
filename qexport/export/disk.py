"""Is there room, and is anything in the way? Asked before the first byte is written."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from qexport.errors import EnvironmentProblem, UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qexport.formats.plan import ArtifactPlan

__all__ = ["check_collisions", "check_space", "free_bytes"]


def free_bytes(folder: Path) -> int:
    """Free bytes where ``folder`` is or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(plans: Sequence[ArtifactPlan], folder: Path) -> None:
    """Raises EnvironmentProblem when the artifacts are larger than the free space."""
    needed, free = sum(plan.size for plan in plans), free_bytes(folder)
    if needed > free:
        raise EnvironmentProblem(
            f"{needed / 1e9:.2f} GB are needed, but only {free / 1e9:.2f} GB are free",
            hint="Free some space, choose another --out, or export fewer types at a time.",
        )


def check_collisions(names: Sequence[str], folder: Path, *, overwrite: bool) -> None:
    """Raises UsageProblem when two files share a name, or one is there already and may not be replaced."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageProblem(
            f"two artifacts would have the name {twice[0]}",
            hint="Put {type} into the file name template.",
        )
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite:
        raise UsageProblem(
            f"{', '.join(there[:3])} {'is' if len(there) == 1 else 'are'} already in {folder.name or folder}",
            hint="Add --overwrite to replace, or choose another --out.",
        )
