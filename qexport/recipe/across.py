"""What no part of a recipe can see alone: names that clash, folders and repositories that two would share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qexport.formats.registry import FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.recipe.problems import Problems
    from qexport.recipe.recipe import AskedArtifact, Recipe, RecipeModel


# https://huggingface.co/docs/hub/repositories-getting-started: 96 characters, no -- or .. inside
_REPO = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


def check_across(recipe: Recipe, numbers: Sequence[int], problems: Problems) -> None:
    """Note what does not go together.

    Args:
        numbers: where each artifact stands in the file's list.
    """
    _folders(recipe, numbers, problems)
    _repos(recipe, problems)
    weighted = any(each.importance for each in recipe.artifacts)
    ready = recipe.calibration is not None and recipe.calibration.imatrix is not None
    if ready and weighted and len(recipe.subjects) > 1:
        problems.at(("compare",), "a ready imatrix belongs to one model; to compare, give a corpus for both")
    scaled = any(getattr(each.options, "input_scales", False) for each in recipe.artifacts)
    if recipe.calibration is not None and not problems and not weighted and not scaled:
        problems.at(("calibration",), "no artifact uses this calibration")


def check_grafts(root: Mapping[Any, Any], problems: Problems) -> None:
    """Note grafts that have nothing to take from; ``root`` is the file as it was read."""
    named = {key: part for key in ("mtp", "vision") if isinstance(part := root.get(key), Mapping)}
    both = "base" in root
    for key, part in named.items():
        head = key == "mtp"
        there = both or "base" in part or (not head and "base" in named.get("mtp", {}))
        if part.get("mode") == "graft" and not there:
            what = "head" if head else "tower"
            problems.at((key,), f"mode graft needs a 'base' whose {what} is taken")


def check_names(artifacts: Mapping[int, AskedArtifact], problems: Problems) -> None:
    """Note names that two artifacts have, by their places in the file's list."""
    first: dict[str, int] = {}
    for number, artifact in artifacts.items():
        if artifact.name in first:
            where = problems.place(("artifacts", first[artifact.name]))
            problems.at(
                ("artifacts", number),
                f"two artifacts are called {artifact.name!r} (the first in line {where.line}); "
                "give one a 'name'",
            )
        first.setdefault(artifact.name, number)


def _folders(recipe: Recipe, numbers: Sequence[int], problems: Problems) -> None:
    """One folder holds one artifact, or GGUF files of several."""
    taken: dict[str, tuple[RecipeModel, AskedArtifact]] = {}
    for subject in recipe.subjects:
        for number, artifact in zip(numbers, recipe.artifacts, strict=True):
            folder = recipe.folder(subject, artifact)
            if folder not in taken:
                taken[folder] = (subject, artifact)
                continue
            other_subject, other = taken[folder]
            if other_subject is not subject:
                problems.at(
                    ("compare",), f"both models would be written to {folder}; give one a 'name' in its source"
                )
            elif not (FORMATS[artifact.kind].ladder and FORMATS[other.kind].ladder):
                problems.at(
                    ("artifacts", number),
                    f"{artifact.name} and {other.name} would both be written to {folder}; "
                    "give one a 'folder'",
                )


def is_repository(name: str) -> bool:
    """Whether the Hub takes it.

    >>> is_repository("you/Model-GGUF"), is_repository("a/b c/Model")
    (True, False)
    """
    return _REPO.fullmatch(name) is not None


def _repos(recipe: Recipe, problems: Problems) -> None:
    folders: dict[str, str] = {}
    for subject in recipe.subjects if recipe.publish is not None else ():
        for artifact in recipe.artifacts:
            repo, folder = recipe.repo(subject, artifact), recipe.folder(subject, artifact)
            assert repo is not None
            if not is_repository(repo):
                problems.at(
                    ("publish", "repo"),
                    f"{repo!r} is no repository (org/name; {{folder}}, {{name}}, {{artifact}})",
                )
                return
            if folders.setdefault(repo, folder) != folder:
                problems.at(
                    ("publish", "repo"),
                    f"{folders[repo]} and {folder} would both go to {repo}; put {{folder}} into the name",
                )
