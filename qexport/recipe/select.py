"""``--only``: the units of a recipe that a run is for.

A unit is what is written or not: one type of a ladder, or one folder, of one model. ``gguf:Q4_K_M`` is a
type, ``gguf`` all types of that artifact, ``compare/gguf`` those of the base alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import UsageProblem, closest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qexport.recipe.recipe import Recipe


@dataclass(frozen=True)
class Unit:
    """``type`` is empty for an artifact that is one folder."""

    subject: str
    artifact: str
    type: str = ""

    @property
    def short(self) -> str:
        """Without the subject."""
        return f"{self.artifact}:{self.type}" if self.type else self.artifact

    def __str__(self) -> str:
        return f"{self.subject}/{self.short}"


def units_of(recipe: Recipe) -> tuple[Unit, ...]:
    """Everything in a recipe, model by model, in the order of the file."""
    return tuple(
        Unit(subject.key, artifact.name, type_name)
        for subject in recipe.subjects
        for artifact in recipe.artifacts
        for type_name in artifact.types or ("",)
    )


def select(recipe: Recipe, only: Iterable[str]) -> tuple[Unit, ...]:
    """The units that words such as ``gguf:Q8_0,mlx`` name; all of them without words.

    Raises:
        UsageProblem: a word names nothing.
    """
    every = units_of(recipe)
    words = [word.strip() for text in only for word in text.split(",") if word.strip()]
    if not words:
        return every
    chosen: set[Unit] = set()
    for word in words:
        matching = {unit for unit in every if word in _names(unit)}
        if not matching:
            known = list(dict.fromkeys(name for unit in every for name in (unit.artifact, unit.short)))
            raise UsageProblem(
                f"--only {word} names nothing in {recipe.path or recipe.label}{closest(word, known)}",
                hint=f"It takes {', '.join(known)}, with model/ or compare/ before it where there are both.",
            )
        chosen |= matching
    return tuple(unit for unit in every if unit in chosen)


def words_for(recipe: Recipe, units: Sequence[Unit]) -> tuple[str, ...]:
    """The shortest words that select exactly these units."""
    both = len(recipe.subjects) > 1
    words: dict[str, None] = {}
    for unit in units:
        all_types = {each for each in units_of(recipe) if _same_artifact(each, unit)} <= set(units)
        word = unit.artifact if all_types else unit.short
        words[f"{unit.subject}/{word}" if both else word] = None
    return tuple(words)


def _names(unit: Unit) -> tuple[str, ...]:
    short = (unit.artifact, unit.short)
    return (*short, *(f"{unit.subject}/{name}" for name in short), f"{unit.subject}/")


def _same_artifact(a: Unit, b: Unit) -> bool:
    return (a.subject, a.artifact) == (b.subject, b.artifact)
