"""SHA256SUMS, in the form that ``sha256sum -c`` reads, from hashes that were taken while writing.

A push reads every file that it sends and compares it with its receipt: a file of the same size under the
same name may be another one. A rehearsal reads those that were touched after their receipt, or all with
``rehash``. Between the reading and the commit no file may change, which its size, times and inode tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from qexport.receipt.types import Artifact


# Receipts hold whole seconds, and file systems round: two seconds are no sign of a change.
_SLACK = 2.0


def sums_text(hashes: Mapping[str, str]) -> str:
    r"""The file's text, sorted by name.

    >>> sums_text({"b": "22", "a": "11"})
    '11  a\n22  b\n'
    """
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items()))


def to_hash(folder: Path, artifacts: Iterable[Artifact], *, rehash: bool) -> dict[str, str]:
    """The files to read, with the hashes they must have: all, or those touched after their receipt."""
    wanted: dict[str, str] = {}
    for artifact in artifacts:
        written = artifact.written_at
        for file in artifact.files:
            path = folder / file.name
            if not path.is_file():
                continue
            if rehash or written is None or path.stat().st_mtime > written + _SLACK:
                wanted[file.name] = file.sha256
    return wanted


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does."""
    found = path.stat()
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)


def check_stamps(folder: Path, stamps: Mapping[str, tuple[int, ...]]) -> None:
    """See that files are as they were when their stamps were taken.

    Raises:
        InputError: one has changed, or is gone.
    """
    for name, before in stamps.items():
        try:
            same = stamp(folder / name) == before
        except OSError:
            same = False
        if not same:
            raise InputError(
                f"{name} changed while it was being published. Nothing of this push is visible on the Hub.",
                hint="Let nothing write into the folder meanwhile, and push again.",
            )
