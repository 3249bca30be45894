"""The files of an artifact on the disk, against what its receipt says of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.receipt.state import Lost, State

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from qexport.progress import Progress
    from qexport.receipt.types import Artifact


_CHUNK = 1 << 22


def is_there(folder: Path, artifact: Artifact) -> bool:
    """Whether all its files are there, with their sizes."""
    return lost(folder, artifact) is None


def lost(folder: Path, artifact: Artifact) -> Lost | None:
    """The first file that is missing, or else has another size; ``None``: all are as they were."""
    changed = None
    for file in artifact.files:
        try:
            same = (folder / file.name).stat().st_size == file.size
        except OSError:
            return Lost(file.name, State.GONE)
        changed = changed or (None if same else Lost(file.name, State.CHANGED))
    return changed


def check_sizes(folder: Path, artifact: Artifact) -> None:
    """As :func:`is_there`.

    Raises:
        InputError: a file is missing, or has another size.
    """
    for file in artifact.files:
        path = folder / file.name
        if not path.is_file():
            raise InputError(
                f"{file.name} of {artifact.label} is in the receipt, but not in the folder",
                hint="Export it again.",
            )
        size = path.stat().st_size
        if size != file.size:
            raise InputError(
                f"{file.name} has {size} bytes; the receipt says {file.size}",
                hint="It was changed or cut after the export: export it again.",
            )


def check_hashes(folder: Path, wanted: Mapping[str, str], progress: Progress | None = None) -> None:
    """Read files and compare.

    Raises:
        InputError: a file does not have the hash of its receipt.
    """
    for name, sha256 in sorted(wanted.items()):
        if sha256_of(folder / name, progress) != sha256:
            raise InputError(
                f"{name} is not the file that was exported: its SHA-256 differs from the receipt's",
                hint="It was changed after the export, or the disk lost something: export it again.",
            )


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress.advance(len(chunk))
    return digest.hexdigest()
