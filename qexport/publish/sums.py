"""SHA256SUMS, in the form that ``sha256sum -c`` reads, from hashes that were taken while writing.

The export hashed every byte on its way to the disk, so nothing is read again: for 300 GB of artifacts that
is the better part of an hour. A file that was touched after its receipt is the exception, as is everything
with ``rehash``: what is read then must give the receipt's hash.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from qexport.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from qexport.export.execute import Progress
    from qexport.publish.artifacts import Artifact

__all__ = ["check_hashes", "sha256_of", "sums_text", "to_hash"]

_CHUNK = 1 << 22
# Receipts hold whole seconds, and file systems round: two seconds are no sign of a change.
_SLACK = 2.0


def sums_text(hashes: Mapping[str, str]) -> str:
    r"""The file's text, sorted by name.

    >>> sums_text({"b": "22", "a": "11"})
    '11  a\n22  b\n'
    """
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items()))


def to_hash(folder: Path, artifacts: Iterable[Artifact], *, rehash: bool) -> dict[str, str]:
    """The files to read, with the hashes they must have: all, or those changed after their receipt."""
    wanted: dict[str, str] = {}
    for artifact in artifacts:
        written = artifact.written
        for file in artifact.files:
            path = folder / file.name
            if not path.is_file():
                continue
            if rehash or written is None or path.stat().st_mtime > written + _SLACK:
                wanted[file.name] = file.sha256
    return wanted


def check_hashes(folder: Path, wanted: Mapping[str, str], progress: Progress | None = None) -> None:
    """Read files and compare.

    Raises:
        InputError: a file does not have the hash of its receipt.
    """
    for name, sha256 in sorted(wanted.items()):
        if sha256_of(folder / name, progress) != sha256:
            raise InputError(
                f"{name} is not the file that was exported: its SHA-256 differs from the receipt's.",
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
