"""Is there room, and is anything in the way? Asked before the first byte is written."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.onepass.files import refuse_hub_cache, temporary_name, write_problem

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from qexport.formats.plan import ArtifactPlan


_NAME_BYTES = 255  # of a file's name, on every file system in use


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
    refuse_hub_cache(folder)
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
    names: Sequence[str], folder: Path, *, overwrite: bool, mine: Collection[int] = ()
) -> None:
    """Raises UsageProblem when a name cannot be written to, two files share it, or it is taken.

    Args:
        mine: inodes of the files of an interrupted run, which may always be replaced.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageProblem(
            f"two artifacts would have the name {twice[0]}",
            hint="Put {type} into the file name template.",
        )
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageProblem(f"{folder.name or folder} is not a folder", hint="Choose another --out.")
    there = []
    for name in names:
        if len(os.fsencode(temporary_name(Path(name).name))) > _NAME_BYTES:
            raise UsageProblem(
                f"the file name {name[:40]}... is too long: {len(os.fsencode(name))} bytes",
                hint="Choose a shorter one (--file-name, --model-name).",
            )
        try:
            status = (folder / name).lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise write_problem(error, name) from error
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            what = "folder" if stat.S_ISDIR(status.st_mode) else "device or a pipe"
            raise UsageProblem(f"{name} is a {what} in {folder.name or folder}", hint="Choose another --out.")
        if status.st_ino not in mine:
            there.append(name)
    if there and not overwrite:
        raise UsageProblem(
            f"{', '.join(there[:3])} {'is' if len(there) == 1 else 'are'} already in {folder.name or folder}",
            hint="Add --overwrite to replace, or choose another --out.",
        )
