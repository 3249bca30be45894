"""What a folder holds, by its receipts.

A folder may hold receipts in subfolders, or be a subfolder itself whose receipt lies one level up; names are
always made relative to the folder that is asked for. Files are not read, but one that is missing,
or has another size, is noticed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.errors import InputError, UsageProblem
from qexport.receipt.names import RECEIPT_NAME, is_made_here
from qexport.receipt.on_disk import lost
from qexport.receipt.store import read_receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from qexport.receipt.types import Artifact


@dataclass(frozen=True)
class Contents:
    """Artifacts, and notes about what receipts hold that cannot be used."""

    artifacts: tuple[Artifact, ...]
    notes: tuple[str, ...] = ()


def known_in(folder: Path) -> Contents:
    """Every artifact that receipts in or just above ``folder`` know.

    Raises:
        InputError: there is no receipt, or none that can be used, or two that contradict each other.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", hint="Give the folder that an export wrote.")
    artifacts: list[Artifact] = []
    notes: list[str] = []
    for inner in _receipts(folder):
        prefix = "" if inner == "." else f"{inner}/"
        artifacts += _entries(folder / inner, prefix.__add__, notes)
    if not artifacts:
        own = f"{folder.absolute().name}/"
        above = _entries(folder.absolute().parent, lambda name: name, notes)
        mine = (a for a in above if all(file.name.startswith(own) for file in a.files))
        artifacts = _renamed(mine, lambda name: name.removeprefix(own))
    if not artifacts:
        raise InputError(
            f"{folder.name or folder} holds no {RECEIPT_NAME} that knows its files"
            + "".join(f"; {note}" for note in notes),
            hint="Give a folder that qexport wrote; the receipt lies beside the files. Export again where it "
            "is damaged.",
        )
    _refuse_twice(artifacts)
    name = folder.absolute().name
    found = (replace(artifact, folder=name, lost=lost(folder, artifact)) for artifact in artifacts)
    return Contents(tuple(found), tuple(notes))


def select(artifacts: Sequence[Artifact], only: Iterable[str]) -> tuple[Artifact, ...]:
    """The artifacts with these labels (in any case); all of them where none is named.

    Raises:
        UsageProblem: a label that no artifact has.
    """
    wanted = [word.casefold() for word in only]
    known = {artifact.label.casefold() for artifact in artifacts}
    if unknown := [word for word in wanted if word not in known]:
        labels = ", ".join(sorted({artifact.label for artifact in artifacts}))
        raise UsageProblem(
            f"there is no artifact {unknown[0]!r} in the receipt", hint=f"There are: {labels}."
        )
    return tuple(a for a in artifacts if not wanted or a.label.casefold() in wanted)


def _receipts(folder: Path) -> list[str]:
    """Folders with a receipt, relative to this one, in order; none that is hidden, none behind a link."""
    found = []
    for root, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        if RECEIPT_NAME in files:
            found.append(Path(root).relative_to(folder).as_posix())
    return sorted(found)


def _entries(folder: Path, rename: Callable[[str], str], notes: list[str]) -> list[Artifact]:
    read = read_receipt(folder)
    notes += read.notes
    if read.damaged:
        notes.append(f"{RECEIPT_NAME} in {folder.name or folder} cannot be used: {read.damaged}")
    return _renamed(read.receipt.artifacts, rename)


def _renamed(artifacts: Iterable[Artifact], rename: Callable[[str], str]) -> list[Artifact]:
    """Under other names, without cards and the like, which are written anew."""
    made = []
    for artifact in artifacts:
        own = [file for file in artifact.files if not is_made_here(file.name)]
        if own:
            files = tuple(replace(file, name=rename(file.name)) for file in own)
            made.append(replace(artifact, files=files))
    return made


def _refuse_twice(artifacts: Sequence[Artifact]) -> None:
    owners: dict[str, str] = {}
    for artifact in artifacts:
        for file in artifact.files:
            # Folder formats written beside each other may share a tokenizer: equal bytes are no conflict.
            if owners.setdefault(file.name, file.sha256) != file.sha256:
                raise InputError(
                    f"{RECEIPT_NAME} cannot be used: {file.name} is in it twice, with different hashes.",
                    hint="Export again, so that a receipt is written.",
                )
