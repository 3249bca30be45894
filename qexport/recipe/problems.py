"""Everything that is wrong with a recipe, collected first and said at once, each with its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.checkpoint.yaml_tree import Place, place_of
from qexport.errors import UsageProblem

if TYPE_CHECKING:
    from qexport.checkpoint.yaml_tree import Node


Steps = tuple[str | int, ...]
"""Keys and numbers that lead from the whole to a part: ``("artifacts", 0, "mlx", "bits")``."""


class Problems:
    """What has been found so far in the tree ``root`` of ``file``."""

    def __init__(self, file: str) -> None:
        self.root: Node = None
        self._file = file
        self._found: dict[tuple[Place, str], None] = {}

    def add(self, place: Place, message: str) -> None:
        """Note a problem; the same one at the same place counts once."""
        self._found[place, message] = None

    def at(self, path: Steps, message: str, *, key: bool = False) -> None:
        """Note a problem of the part at ``path`` (or its key); of what is missing, at what should hold it."""
        self.add(self.place(path, key=key), message)

    def place(self, path: Steps, *, key: bool = False) -> Place:
        """Where a part stands."""
        return place_of(self.root, path, Place(self._file, 1, 1), key=key)

    def __len__(self) -> int:
        return len(self._found)

    def raise_any(self) -> None:
        """Raise UsageProblem with all of them, in the order of the file."""
        if not self._found:
            return
        lines = [f"{place}: {message}" for place, message in sorted(self._found, key=lambda item: item[0])]
        many = f"{len(lines)} things are wrong with the recipe:\n  " if len(lines) > 1 else ""
        raise UsageProblem(many + "\n  ".join(lines), hint="docs/recipes.md explains every key.")
