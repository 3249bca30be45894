"""Which files of a folder go to the Hub.

Only files that a receipt knows, and those that the user names. Anything else stops the push: a half-written
file, a log or a private note must not be published because it happened to lie there. Hidden files, partial
files and the ledgers of runs are never published, not even when named.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.checkpoint.paths import leads_out
from qexport.errors import InputError, UsageProblem
from qexport.receipt.names import is_made_here

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qexport.receipt.types import Artifact


_NEVER = (
    "*.part",
    "*.partial",
    "*.incomplete",
    "*.tmp",
    "*.lock",
    "*.ledger",
    "*.ledger.*",
    "*ledger.json*",
    "qexport.json.*",
)
_SHOWN = 8


@dataclass(frozen=True)
class LeftOut:
    """A file that stays here, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Survey:
    """``included``: names the user asked for, sorted."""

    included: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def survey(
    folder: Path, chosen: Sequence[Artifact], every: Sequence[Artifact], include: Sequence[str]
) -> Survey:
    """Sort the files of ``folder``.

    Args:
        chosen: the artifacts that are pushed; all their files must be here, with the sizes receipts give.
        every: all artifacts of the receipts; files of those not chosen stay here.
        include: names or patterns (``*.md``) of other files that shall go, too.

    Raises:
        InputError: a file is missing or has another size, or one is here that nothing knows.
        UsageProblem: a pattern of ``include`` matches nothing that may go.
    """
    found = _listing(folder)
    wanted = {file.name for artifact in chosen for file in artifact.files}
    others = {file.name for artifact in every for file in artifact.files} - wanted
    if lost := [artifact.lost for artifact in chosen if artifact.lost is not None]:
        lines = "\n".join(f"  {each.file}: {each.state}" for each in lost)
        raise InputError(
            f"Not what the receipt says, so nothing is published:\n{lines}",
            hint="Export that again, or choose others with --only LABEL.",
        )
    _check_kept(folder, wanted)
    left: list[LeftOut] = []
    unknown: list[str] = []
    included: list[str] = []
    for name in sorted(found - wanted):
        if is_made_here(name):
            continue
        if any(part.startswith(".") for part in name.split("/")):
            left.append(LeftOut(name, "hidden"))
        elif any(fnmatchcase(name.rsplit("/", 1)[-1].lower(), pattern) for pattern in _NEVER):
            left.append(LeftOut(name, "unfinished, a ledger, or set aside"))
        elif any(fnmatchcase(name, pattern) for pattern in include):
            included.append(name)
        elif name in others:
            left.append(LeftOut(name, "not chosen"))
        else:
            unknown.append(name)
    _check_kept(folder, included)
    for pattern in include:
        if not any(fnmatchcase(name, pattern) for name in (*included, *wanted)):
            raise UsageProblem(f"--include {pattern} matches no file that may be published")
    if unknown:
        shown = "\n".join(f"  {name}" for name in unknown[:_SHOWN])
        more = f"\n  and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise InputError(
            f"No receipt knows these files, so they are not published:\n{shown}{more}",
            hint="Add each with --include NAME (patterns work), or move them out of the folder.",
        )
    return Survey(tuple(included), tuple(left))


def _listing(folder: Path) -> set[str]:
    """Every file below, by relative name; a link to a folder counts as a file that nothing knows."""
    names = set()
    for root, folders, files in os.walk(folder):
        base = Path(root)
        links = [name for name in folders if (base / name).is_symlink()]
        names |= {(base / name).relative_to(folder).as_posix() for name in (*files, *links)}
    return names


def _check_kept(folder: Path, names: Iterable[str]) -> None:
    """A link may lead to a file of the folder, and nowhere else: what is elsewhere was not exported here."""
    for name in sorted(names):
        if not (folder / name).is_file():
            raise InputError(f"{name} is not a regular file, so it is not published.")
        if leads_out(folder, folder / name):
            raise InputError(
                f"{name} is a link that leads out of {folder.name}, so it is not published.",
                hint="Put the file itself there, or move the link out of the folder.",
            )
