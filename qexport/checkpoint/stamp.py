"""What a file was when it was first looked at, so that a change is seen however late it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from pathlib import Path


@dataclass(frozen=True)
class Stamp:
    """The file behind a name. ``label`` is what may change while the contents stay: mode, owner, links."""

    device: int
    inode: int
    size: int
    written: int
    touched: int
    label: tuple[int, ...]

    def same_contents(self, other: Stamp) -> bool:
        """Whether nothing speaks for other contents.

        The time of writing can be set back by anyone, that of any change (``touched``) by nobody. It moves
        with a new mode, owner or second name as well; then those show it.
        """
        mine, theirs = (replace(each, touched=0, label=()) for each in (self, other))
        return mine == theirs and (self.touched == other.touched or self.label != other.label)

    def identity(self) -> list[int]:
        """What a later run goes by, on another mount perhaps."""
        return [self.size, self.written, self.touched, self.inode]


def stamp(path: Path) -> Stamp:
    """Of the file that ``path`` is or leads to. Raises OSError."""
    found: os.stat_result = path.stat()
    label = (found.st_mode, found.st_uid, found.st_gid, found.st_nlink)
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, label)


def changed_since(path: Path, before: Stamp) -> bool:
    """Whether the file is another one than ``before``, or gone."""
    try:
        return not before.same_contents(stamp(path))
    except OSError:
        return True
