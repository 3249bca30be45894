"""What a recipe's ``publish:`` makes of the folders of a run: one push for each that is there.

The same for ``run --push``, for ``push --recipe`` and so for a workflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import InputError, UsageProblem
from qexport.formats.registry import FORMATS
from qexport.publishing.plan import PushOptions

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from qexport.recipe.recipe import Publication, Recipe
    from qexport.recipe.select import Unit


@dataclass(frozen=True)
class Destination:
    """A folder of a run, and the repository that the recipe has for it.

    Attributes:
        collection: that the repository is added to.
        allow_unverified: what nothing could run, or compare with its source, is published all the same.
    """

    folder: str
    repo: str
    collection: str | None = None
    allow_unverified: bool = False


def destinations(recipe: Recipe, units: Iterable[Unit]) -> list[Destination]:
    """Where the folders of these units go, each once.

    Raises:
        UsageProblem: the recipe does not say where.
    """
    if recipe.publish is None:
        raise UsageProblem(f"{recipe.label} does not say where to publish", hint="Add publish: with a repo.")
    found: dict[str, Destination] = {}
    for unit in units:
        subject, artifact = recipe.subject(unit.subject), recipe.artifact(unit.artifact)
        folder, repo = recipe.folder(subject, artifact), recipe.repo(subject, artifact)
        assert repo is not None
        allowed = artifact.unverified == "allow"
        # What shares a folder is pushed together: what one of them refuses, none is given.
        if folder in found:
            allowed = allowed and found[folder].allow_unverified
        collection = recipe.publish.collection and recipe.publish.collection.replace("{name}", subject.name)
        found[folder] = Destination(folder, repo, collection, allowed)
    return list(found.values())


def pushes(recipe: Recipe, units: Iterable[Unit], out: Path) -> list[PushOptions]:
    """One push for every folder of these units, with all that the recipe says of cards and visibility.

    Args:
        out: the folder that holds the artifacts' folders.

    Raises:
        UsageProblem: the recipe does not say where.
        InputError: a folder is not there.
    """
    made: list[PushOptions] = []
    for each in destinations(recipe, units):
        if not (out / each.folder).is_dir():
            raise InputError(
                f"There is no folder {each.folder} in {out}, which {recipe.label} would publish.",
                hint="Make it with `qexport run`, or leave it out with --only.",
            )
        assert recipe.publish is not None
        made.append(_options(recipe.publish, out / each.folder, each.repo, each))
        for ending in (ending for known in FORMATS.values() for ending in known.beside.values()):
            beside = out / f"{each.folder}{ending}"
            if beside.is_dir():
                made.append(_options(recipe.publish, beside, f"{each.repo}{ending}", each))
    return made


def _options(publish: Publication, folder: Path, repo: str, where: Destination) -> PushOptions:
    card = publish.card
    return PushOptions(
        folder,
        repo,
        base_model=card.base_model,
        quantized_by=card.quantized_by,
        front_matter=card.front_matter(),
        public=not publish.private,
        collection=where.collection,
        ollama=publish.ollama,
        presets=publish.presets,
        allow_unverified=where.allow_unverified,
    )
