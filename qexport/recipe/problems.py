"""Everything that is wrong with a recipe, collected first and said at once, each with its file and line."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qexport.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Place", "Problems", "closest"]


@dataclass(frozen=True, order=True)
class Place:
    """A line of a file, or (``line`` 0) an option of the command line."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass
class Problems:
    """What has been found so far."""

    _found: list[tuple[Place, str]] = field(default_factory=list)

    def add(self, place: Place, message: str) -> None:
        """Note a problem; the same one at the same place counts once."""
        if (place, message) not in self._found:
            self._found.append((place, message))

    def __len__(self) -> int:
        return len(self._found)

    def raise_any(self) -> None:
        """Raise UsageProblem with all of them, in the order of the file."""
        if not self._found:
            return
        lines = [f"{place}: {message}" for place, message in sorted(self._found, key=lambda item: item[0])]
        many = f"{len(lines)} things are wrong with the recipe:\n  " if len(lines) > 1 else ""
        raise UsageProblem(many + "\n  ".join(lines), hint="docs/recipes.md explains every key.")


def closest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'types'?``, else the known words; empty where there are none.

    >>> closest("tpyes", ["types", "options"])
    "; did you mean 'types'?"
    >>> closest("x", ["types", "options"])
    '; known: types, options'
    """
    words = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {words[near[0]]!r}?"
    return f"; known: {', '.join(words.values())}" if words else ""
