"""Several recipes at once: read, told apart by name, and of each what ``--only`` leaves.

What is wrong with one holds up no other: it is an answer like the rest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import QexportError, UsageProblem, some
from qexport.recipe.load import load_recipe
from qexport.recipe.named import shown
from qexport.recipe.select import select

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qexport.recipe.recipe import Recipe
    from qexport.recipe.select import Unit


@dataclass(frozen=True)
class Chosen:
    """A recipe, and what is asked for of it.

    Attributes:
        name: its own among all, and of its folder below --out.
        words: what to call it on a command line, here or on another machine.
    """

    name: str
    words: str
    recipe: Recipe
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Refused:
    """A recipe that cannot be used, and why."""

    name: str
    error: QexportError


def choose(
    paths: Sequence[Path], overrides: Sequence[str], only: Sequence[str]
) -> tuple[list[Chosen], list[Refused]]:
    """Read all of them.

    Args:
        only: words for every recipe; one without anything of these names is left out.

    Raises:
        UsageProblem: two recipes have one name, or a word names nothing in any.
    """
    names = [path.stem for path in paths]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageProblem(
            f"two of the recipes are called {some(twice)}", hint="Rename one: results are kept by name."
        )
    chosen: list[Chosen] = []
    refused: list[Refused] = []
    words = [word.strip() for text in only for word in text.split(",") if word.strip()]
    nowhere: dict[str, QexportError] = {}
    somewhere: set[str] = set()
    for path, name in zip(paths, names, strict=True):
        try:
            recipe = load_recipe(path, overrides)
        except UsageProblem as error:
            refused.append(Refused(name, error))
            continue
        mine: list[str] = []
        for word in words:
            try:
                select(recipe, [word])
                mine.append(word)
            except UsageProblem as error:
                nowhere[word] = error
        somewhere.update(mine)
        if mine or not words:
            chosen.append(Chosen(name, shown(path), recipe, select(recipe, mine)))
    for word, problem in nowhere.items():
        if word not in somewhere and not refused:
            raise problem
    return chosen, refused
