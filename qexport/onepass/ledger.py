"""The ledger of a pass: what is durably on disk, so that a killed run goes on where it stopped.

Every half minute the unfinished files are fsynced, and then the ledger says how many steps of the pass they
hold. Who runs the same export again (the same fingerprint) opens those files as they are and begins with the
next step; hashes are made good by reading back what was written, never the source. The last entry is made
when every file is complete and before the first gets its final name: from there on nothing is encoded again.

A ledger may have come with the folder, from anywhere. So it is read within bounds, and its names are never
believed: a file counts as ours where it also has the inode that the ledger gives, which no other machine's
ledger can know. The ledger is no part of an artifact; it may hold paths.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.paths import SHA256
from qexport.errors import EnvironmentProblem
from qexport.onepass.files import (
    plain_status,
    read_plain,
    replace_file,
    set_aside,
    silent,
    temporary_name,
    write_problem,
)

if TYPE_CHECKING:
    from collections.abc import Callable


LEDGER_NAME = ".qexport-ledger.json"
_SCHEMA = 2
_EVERY = 30.0  # seconds between entries: what a killed run loses at most
_MOST_BYTES = 32 << 20  # of thousands of files with names and hashes


@dataclass(frozen=True)
class Entry:
    """What the ledger says. Files are named as seen from its folder.

    Attributes:
        fingerprint: of everything that is being written.
        files: every file of the run by its final name, with its inode.
        steps: how many steps of the pass are on disk.
        hashes: of all files, once they are complete; ``None`` before.
    """

    fingerprint: str
    files: Mapping[str, int]
    steps: int = 0
    hashes: Mapping[str, str] | None = None


@dataclass
class Ledger:
    """The ledger in ``folder``; only :meth:`read` is for those who do not hold the folder's lock."""

    folder: Path
    every: float = _EVERY
    _last: float = field(default_factory=time.monotonic, init=False)

    def read(self) -> Entry | None:
        """What an earlier run has left, if there is a ledger that can be used."""
        data = read_plain(self.folder / LEDGER_NAME, _MOST_BYTES)
        if data is None:
            return None
        try:
            return _entry(json.loads(data))
        except (ValueError, RecursionError):  # no UTF-8, no JSON, thousands of digits or brackets
            return None

    def take(self, say: Callable[[str], None] = silent) -> Entry | None:
        """As :meth:`read`; what has the ledger's name and is none is set aside."""
        entry = self.read()
        if entry is None:
            try:
                set_aside(self.folder / LEDGER_NAME, say)
            except OSError as error:
                raise EnvironmentProblem(str(write_problem(error, LEDGER_NAME))) from error
        return entry

    def due(self) -> bool:
        """Whether it is time for the next entry."""
        return time.monotonic() - self._last >= self.every

    def write(self, entry: Entry) -> None:
        """Make ``entry`` durable; what it says must be so already. Raises EnvironmentProblem."""
        value: dict[str, Any] = {
            "schema": _SCHEMA,
            "fingerprint": entry.fingerprint,
            "files": dict(entry.files),
            "steps": entry.steps,
            "hashes": None if entry.hashes is None else dict(entry.hashes),
        }
        self._last = time.monotonic()
        replace_file(self.folder / LEDGER_NAME, json.dumps(value).encode())

    def discard(self, entry: Entry | None) -> None:
        """Forget an earlier run: the ledger, and its unfinished files as far as they are certainly ours."""
        with contextlib.suppress(OSError):
            (self.folder / LEDGER_NAME).unlink(missing_ok=True)
        for name, number in entry.files.items() if entry is not None else ():
            final = self.folder / name
            part = final.with_name(temporary_name(final.name))
            found = plain_status(part)  # before links are followed, which takes long for a hundred thousand
            if found is not None and found.st_ino == number and self._is_below(name):
                with contextlib.suppress(OSError):
                    part.unlink()

    def _is_below(self, name: str) -> bool:
        """Whether a name leads into the folder, by no link either."""
        path = PurePath(name)
        if path.is_absolute() or ".." in path.parts:
            return False
        try:
            return (self.folder / path).parent.resolve().is_relative_to(self.folder.resolve())
        except (OSError, RuntimeError):
            return False


def _entry(value: Any) -> Entry | None:
    """A parsed ledger, if it is one of this version and every value is of its kind."""
    if not isinstance(value, dict) or value.get("schema") != _SCHEMA:
        return None
    values: list[Any] = [value.get(key) for key in ("fingerprint", "files", "steps", "hashes")]
    entry = Entry(*values)
    files, hashes = entry.files, entry.hashes
    good = (
        isinstance(entry.fingerprint, str)
        and isinstance(files, dict)
        and all(_is_name(name) and type(number) is int for name, number in files.items())
        and type(entry.steps) is int
        and (hashes is None or (isinstance(hashes, dict) and hashes.keys() == files.keys()))
        and all(isinstance(each, str) and SHA256.fullmatch(each) for each in (hashes or {}).values())
    )
    return entry if good else None


def _is_name(name: str) -> bool:
    return bool(PurePath(name).name) and "\0" not in name
