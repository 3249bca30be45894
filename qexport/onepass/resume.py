"""Going on where an earlier run stopped: the ledger as the pass sees it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qexport.onepass.files import plain_status, sync_folder, temporary_name, write_problem
from qexport.onepass.ledger import Entry, Ledger
from qexport.onepass.sink import WrittenFile

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.formats.plan import ArtifactPlan


@dataclass
class Resume:
    """One run's dealings with a ledger whose folder it has locked.

    Args:
        ledger: the ledger.
        earlier: what it said at first.
        fingerprint: of all that is to be written.
    """

    ledger: Ledger
    earlier: Entry | None
    fingerprint: str
    _sizes: dict[str, int] = field(default_factory=dict, init=False)
    _files: Mapping[str, int] = field(default_factory=dict, init=False)
    _hashes: Mapping[str, str] | None = field(default=None, init=False)

    @property
    def complete(self) -> bool:
        """Whether an earlier run has written everything, and only names are missing, if that."""
        return self._hashes is not None

    def begin(self, plans: Sequence[ArtifactPlan], folders: Sequence[Path], steps: int) -> int:
        """How many steps of ``steps`` need not be done again. What cannot be used is removed."""
        self._sizes = {
            self._key(folder / file.name): file.size
            for plan, folder in zip(plans, folders, strict=True)
            for file in plan.files
        }
        if self.earlier is None or not self._usable(self.earlier, steps):
            self.ledger.discard(self.earlier)
            return 0
        self._files, self._hashes = self.earlier.files, self.earlier.hashes
        return self.earlier.steps

    def opened(self, numbers: Mapping[Path, int], steps: int) -> None:
        """These are the files of the run, with their inodes; they hold ``steps`` steps."""
        self._files = {self._key(path): number for path, number in numbers.items()}
        self.record(steps)

    def due(self) -> bool:
        """Whether it is time for :meth:`record`."""
        return self.ledger.due()

    def record(self, steps: int) -> None:
        """``steps`` steps are on disk, durably."""
        self.ledger.write(Entry(self.fingerprint, self._files, steps))

    def finished(self, hashes: Sequence[Mapping[str, str]], folders: Sequence[Path]) -> None:
        """Every file is complete, with these hashes by name, and durable."""
        named = {
            self._key(folder / name): value
            for mine, folder in zip(hashes, folders, strict=True)
            for name, value in mine.items()
        }
        self.ledger.write(Entry(self.fingerprint, self._files, hashes=named))

    def rename(self, plans: Sequence[ArtifactPlan], folders: Sequence[Path]) -> list[tuple[WrittenFile, ...]]:
        """Give the files of a complete run their final names, those that have none yet."""
        hashes = self._hashes or {}
        written: list[tuple[WrittenFile, ...]] = []
        for plan, folder in zip(plans, folders, strict=True):
            finals = {folder / file.name: file for file in plan.files}
            for path, file in finals.items():
                number = self._files[self._key(path)]
                try:
                    if _is_it(_part(path), number, file.size):
                        _part(path).replace(path)
                except OSError as error:
                    raise write_problem(error, file.name) from error
            for each in {path.parent: None for path in finals}:
                sync_folder(each)
            written.append(
                tuple(WrittenFile(f.name, f.size, hashes[self._key(path)]) for path, f in finals.items())
            )
        return written

    def forget(self) -> None:
        """Nothing of this run is of use to the next."""
        self.ledger.discard(Entry(self.fingerprint, self._files))

    def _usable(self, earlier: Entry, steps: int) -> bool:
        """Whether it is the same run, and every file is the one that it wrote and has the planned size."""
        if earlier.fingerprint != self.fingerprint or earlier.files.keys() != self._sizes.keys():
            return False
        if earlier.hashes is None and not 0 < earlier.steps <= steps:
            return False
        paths = {name: self.ledger.folder / name for name in self._sizes}
        return all(
            _is_it(_part(path), earlier.files[name], self._sizes[name])
            or (earlier.hashes is not None and _is_it(path, earlier.files[name], self._sizes[name]))
            for name, path in paths.items()
        )

    def _key(self, path: Path) -> str:
        return os.path.relpath(path, self.ledger.folder)


def numbers_there(folder: Path) -> frozenset[int]:
    """Inodes of the files that an interrupted run has written, by the ledger in ``folder``."""
    entry = Ledger(folder).read()
    return frozenset() if entry is None else frozenset(entry.files.values())


def _is_it(path: Path, number: int, size: int) -> bool:
    status = plain_status(path)
    return status is not None and (status.st_ino, status.st_size) == (number, size)


def _part(path: Path) -> Path:
    return path.with_name(temporary_name(path.name))
