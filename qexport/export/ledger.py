"""The ledger of a pass: what is durably on disk, so that a killed run goes on where it stopped.

Every half minute the unfinished files are fsynced, and then the ledger says how many steps of the pass they
hold. Who runs the same export again (the same fingerprint) opens those files as they are and begins with the
next step; hashes are made good by reading back what was written, never the source. The last entry is made
when every file is complete and before the first gets its final name: from there on nothing is encoded again.

A lock file beside it keeps two runs from one folder. Both disappear with the end of the run. The ledger is
no part of an artifact; it may hold paths.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.errors import EnvironmentProblem
from qexport.export.sink import sync_folder, temporary_name

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LEDGER_NAME", "LOCK_NAME", "Entry", "Ledger"]

LEDGER_NAME = ".qexport-ledger.json"
LOCK_NAME = ".qexport-lock"
_SCHEMA = 1
_EVERY = 30.0  # seconds between entries: what a killed run loses at most


@dataclass(frozen=True)
class Entry:
    """What the ledger says.

    Attributes:
        fingerprint: of everything that is being written.
        files: every file of the run.
        steps: how many steps of the pass are on disk.
        hashes: of all files, once they are complete; ``None`` before.
    """

    fingerprint: str
    files: tuple[Path, ...]
    steps: int = 0
    hashes: Mapping[str, str] | None = None


@dataclass
class Ledger:
    """The ledger in ``folder``, held by one run from :meth:`open` to :meth:`close`."""

    folder: Path
    every: float = _EVERY
    _lock: int = field(default=-1, init=False)
    _last: float = field(default=0.0, init=False)

    def open(self) -> Entry | None:
        """Take the lock; what an earlier run has left, if it can be read.

        Raises:
            EnvironmentProblem: another run holds it, or the folder cannot be written to.
        """
        try:
            self._lock = _take(self.folder / LOCK_NAME)
        except BlockingIOError as error:
            raise EnvironmentProblem(
                f"another run is writing into {self.folder.name or self.folder}",
                hint="Wait for it, or choose another --out.",
            ) from error
        except OSError as error:
            raise EnvironmentProblem(
                f"{self.folder.name or self.folder} cannot be written to: {error.strerror or error}",
                hint="Choose another --out.",
            ) from error
        self._last = time.monotonic()
        return self.read()

    def due(self) -> bool:
        """Whether it is time for the next entry."""
        return time.monotonic() - self._last >= self.every

    def write(self, entry: Entry) -> None:
        """Make ``entry`` durable; what it says must be so already."""
        value: dict[str, Any] = {
            "schema": _SCHEMA,
            "fingerprint": entry.fingerprint,
            "files": [os.path.relpath(path, self.folder) for path in entry.files],
            "steps": entry.steps,
            "hashes": None if entry.hashes is None else dict(entry.hashes),
        }
        path = self.folder / LEDGER_NAME
        part = self.folder / temporary_name(LEDGER_NAME)
        with part.open("w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(self.folder)
        self._last = time.monotonic()

    def discard(self, files: Sequence[Path]) -> None:
        """Forget an earlier run: its unfinished files and the ledger itself."""
        for path in files:
            path.with_name(temporary_name(path.name)).unlink(missing_ok=True)
        (self.folder / LEDGER_NAME).unlink(missing_ok=True)
        (self.folder / temporary_name(LEDGER_NAME)).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the lock. The ledger stays unless it was discarded."""
        if self._lock >= 0:
            (self.folder / LOCK_NAME).unlink(missing_ok=True)  # while it is held: nobody else has it
            os.close(self._lock)
            self._lock = -1

    def read(self) -> Entry | None:
        """What the ledger says, if there is one that can be read; needs no lock."""
        try:
            value = json.loads((self.folder / LEDGER_NAME).read_text(encoding="utf-8"))
            if value["schema"] != _SCHEMA:
                return None
            files = tuple(self.folder / name for name in value["files"])
            hashes = value["hashes"]
            return Entry(str(value["fingerprint"]), files, int(value["steps"]), hashes)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # there is none, or it is no ledger of this version


def _take(path: Path) -> int:
    """Open and lock ``path``; it must still be the file of that name once it is locked."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(fd)
            if os.fstat(fd).st_ino == path.stat().st_ino:
                return fd
        except FileNotFoundError:
            pass  # its holder has just finished and removed it
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _flock(fd: int) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
