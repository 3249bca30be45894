"""What a run reads: nothing of it is ever written to, and all of it is the same at the end.

The merged weights are often the only copy, and every way of writing over them has been somebody's evening:
``-o`` with the model's own folder, a link to it, another spelling on a disk that ignores case, a mount of it,
a name that is a second name of one of its files. So places are compared by inode, never by name, and no
option lifts it. The Hub's cache is read by every program on the machine and written to by the Hub's client
alone.

A source that changed while it was read has no artifact: what was made is torn between two versions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import checkpoints_of
from qexport.errors import InputError, UsageProblem
from qexport.onepass.files import refuse_hub_cache, temporary_name, upwards

if TYPE_CHECKING:
    from qexport.checkpoint.tensors import Checkpoint
    from qexport.formats.plan import ArtifactPlan


_MOST_FILES = 100_000  # of a source's folder are looked at: who exports a home folder waits no minute for it
_HINT = "Choose another --out. No option allows this."

_Id = tuple[int, int]


@dataclass(frozen=True)
class Sources:
    """What a run reads.

    Attributes:
        checkpoints: the model, and the base of its MTP head.
        given: whatever else was named: a corpus, a matrix, a recipe; folders with all that is in them.
    """

    checkpoints: tuple[Checkpoint, ...] = ()
    given: tuple[Path, ...] = ()

    @classmethod
    def of(cls, plans: Iterable[ArtifactPlan]) -> Sources:
        """Those that the plans' own tensors are read from."""
        return cls(checkpoints_of(tensor.source for plan in plans for tensor in plan.tensors))

    def __or__(self, other: Sources) -> Sources:
        checkpoints = {id(each): each for each in (*self.checkpoints, *other.checkpoints)}
        return Sources(tuple(checkpoints.values()), tuple(dict.fromkeys((*self.given, *other.given))))

    def refuse(self, folder: Path, names: Iterable[str] = ()) -> None:
        """Raises UsageProblem where writing these files into ``folder`` would touch a source."""
        for place in {(folder / name).parent for name in names} | {folder}:
            self._refuse_place(place)
        root = Path(os.path.realpath(folder))
        for name in names:
            path = folder / name
            if not Path(os.path.realpath(path.parent)).is_relative_to(root):
                raise UsageProblem(f"{name} would lie outside of {folder.name or folder}", hint=_HINT)
            for each in (path, path.with_name(temporary_name(path.name))):
                source = self._ids.get(_id(each))
                if source is not None:
                    raise UsageProblem(
                        f"{each.name} would be written over {source}, which is read from", hint=_HINT
                    )

    def refuse_removal(self, folder: Path) -> None:
        """Raises UsageProblem where removing ``folder`` would take a source with it."""
        self._refuse_place(folder)
        mine = _id(folder)
        for path in self._roots:
            if mine is not None and mine in (_id(each) for each in upwards(path)):
                raise UsageProblem(f"{path.name} lies in {folder.name}, which would be removed", hint=_HINT)

    def refuse_changed(self) -> None:
        """Raises InputError where a file that was read is not what it was at first."""
        changed = [(each.label, name) for each in self.checkpoints for name in each.changed()]
        if changed:
            names = ", ".join(name for _, name in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise InputError(
                f"{changed[0][0]} changed while it was read: {names}{more}",
                hint="What was made of it is of no use. Start again when nothing writes to it.",
            )

    def _refuse_place(self, place: Path) -> None:
        for above in upwards(place):
            source = self._ids.get(_id(above))
            if source is not None:
                what = "the output folder is" if _id(place) == _id(above) else f"{place.name} lies in"
                raise UsageProblem(f"{what} {source}, which is read from", hint=_HINT)
        refuse_hub_cache(place)

    @property
    def _roots(self) -> list[Path]:
        return [*(each.folder for each in self.checkpoints if each.folder is not None), *self.given]

    @cached_property
    def _ids(self) -> Mapping[_Id | None, str]:
        """Every folder and file that is a source, with what to call it."""
        found: dict[_Id | None, str] = {}
        for root in self._roots:
            name = root.absolute().name or Path(os.path.realpath(root)).name
            for path in islice(_all_of(root), _MOST_FILES):
                found.setdefault(_id(path), f"{name}/{path.relative_to(root)}" if path != root else name)
        found.pop(None, None)
        return found


def paths_in(value: object) -> Iterator[Path]:
    """The paths that a value of options holds, at any depth, but where it goes (``out``)."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from paths_in(each)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            if field.name != "out":
                yield from paths_in(getattr(value, field.name))


def _all_of(root: Path) -> Iterator[Path]:
    yield root
    if root.is_dir():
        for name, folders, files in os.walk(root):
            folder = Path(name)
            yield from (folder / each for each in folders if not (folder / each).is_symlink())
            yield from (folder / each for each in files)


def _id(path: Path) -> _Id | None:
    """What ``path`` is or leads to; ``None`` where there is nothing."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
