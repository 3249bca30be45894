"""Going on where an earlier run stopped: the ledger as the pass sees it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qexport.errors import EnvironmentProblem
from qexport.export.ledger import Entry, Ledger
from qexport.export.sink import WrittenFile, sync_folder, temporary_name

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.formats.plan import ArtifactPlan

__all__ = ["Resume"]


@dataclass
class Resume:
    """One run's dealings with an open ledger.

    Args:
        ledger: open, so locked by this run.
        earlier: what it said when it was opened.
        fingerprint: of all that is to be written.
    """

    ledger: Ledger
    earlier: Entry | None
    fingerprint: str
    _files: tuple[Path, ...] = field(default=(), init=False)
    _hashes: Mapping[str, str] | None = field(default=None, init=False)

    @property
    def complete(self) -> bool:
        """Whether an earlier run has written everything, and only names are missing, if that."""
        return self._hashes is not None

    def begin(self, plans: Sequence[ArtifactPlan], folders: Sequence[Path], steps: int) -> int:
        """How many steps of ``steps`` need not be done again. What cannot be used is removed."""
        self._files = tuple(
            folder / file.name for plan, folder in zip(plans, folders, strict=True) for file in plan.files
        )
        earlier = self.earlier
        if earlier is not None and not self._usable(earlier, steps):
            self.ledger.discard(earlier.files)
            earlier = None
        if earlier is None:
            self.record(0)
            return 0
        self._hashes = earlier.hashes
        return earlier.steps

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
            for file in plan.files:
                path = folder / file.name
                part = path.with_name(temporary_name(path.name))
                try:
                    if part.exists():
                        part.replace(path)
                except OSError as error:
                    raise EnvironmentProblem(
                        f"{file.name} cannot be given its name: {error.strerror or error}"
                    ) from error
            sync_folder(folder)
            written.append(
                tuple(
                    WrittenFile(file.name, file.size, hashes[self._key(folder / file.name)])
                    for file in plan.files
                )
            )
        return written

    def forget(self) -> None:
        """Nothing of this run is of use to the next."""
        self.ledger.discard(self._files)

    def _usable(self, earlier: Entry, steps: int) -> bool:
        every = {self._key(path) for path in self._files}
        if earlier.fingerprint != self.fingerprint or every != {self._key(path) for path in earlier.files}:
            return False
        if earlier.hashes is not None:
            return every <= set(earlier.hashes) and all(
                _part(path).exists() or path.exists() for path in self._files
            )
        return 0 < earlier.steps <= steps and all(_part(path).exists() for path in self._files)

    def _key(self, path: Path) -> str:
        return os.path.relpath(path, self.ledger.folder)


def _part(path: Path) -> Path:
    return path.with_name(temporary_name(path.name))
