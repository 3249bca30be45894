"""What no part of a recipe can see alone: names that clash, folders and repositories that two would share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qexport.recipe.kinds import KINDS
from qexport.recipe.tree import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qexport.recipe.problems import Place, Problems
    from qexport.recipe.recipe import Artifact, Recipe, Subject

__all__ = ["check_across", "check_names"]

# https://huggingface.co/docs/hub/repositories-getting-started: 96 characters, no -- or .. inside
_REPO = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


def check_across(recipe: Recipe, root: Table, problems: Problems) -> None:
    """Note what does not go together."""
    _folders(recipe, root, problems)
    _repos(recipe, root, problems)
    node = root.get("compare")
    ready = recipe.calibration is not None and recipe.calibration.imatrix is not None
    if node is not None and ready and any(each.importance for each in recipe.artifacts):
        problems.add(node.place, "a ready imatrix belongs to one model; to compare, give a corpus for both")
    calibration = root.get("calibration")
    unused = not problems and not any(each.importance for each in recipe.artifacts)
    if calibration is not None and unused:
        problems.add(calibration.place, "no artifact uses this calibration")


def check_names(artifacts: Iterable[Artifact], problems: Problems) -> None:
    """Note names that two artifacts have."""
    first: dict[str, Place] = {}
    for artifact in artifacts:
        if artifact.name in first:
            where = first[artifact.name]
            problems.add(
                artifact.place,
                f"two artifacts are called {artifact.name!r} (the first in line {where.line}); "
                "give one a 'name'",
            )
        first.setdefault(artifact.name, artifact.place)


def _folders(recipe: Recipe, root: Table, problems: Problems) -> None:
    """One folder holds one artifact, or GGUF files of several."""
    taken: dict[str, tuple[Subject, Artifact]] = {}
    for subject in recipe.subjects:
        for artifact in recipe.artifacts:
            folder = recipe.folder(subject, artifact)
            if folder not in taken:
                taken[folder] = (subject, artifact)
                continue
            other_subject, other = taken[folder]
            if other_subject is not subject:
                place = (root.get("compare") or root).place
                problems.add(
                    place, f"both models would be written to {folder}; give one a 'name' in its source"
                )
            elif not (KINDS[artifact.kind].ladder and KINDS[other.kind].ladder):
                problems.add(
                    artifact.place,
                    f"{artifact.name} and {other.name} would both be written to {folder}; "
                    "give one a 'folder'",
                )


def _repos(recipe: Recipe, root: Table, problems: Problems) -> None:
    publish = root.get("publish")
    if recipe.publish is None or not isinstance(publish, Table):
        return
    place = publish.entries["repo"].value.place
    folders: dict[str, str] = {}
    for subject in recipe.subjects:
        for artifact in recipe.artifacts:
            repo, folder = recipe.repo(subject, artifact), recipe.folder(subject, artifact)
            assert repo is not None
            if _REPO.fullmatch(repo) is None:
                problems.add(
                    place, f"{repo!r} is no repository (org/name; {{folder}}, {{name}}, {{artifact}})"
                )
                return
            if folders.setdefault(repo, folder) != folder:
                problems.add(
                    place,
                    f"{folders[repo]} and {folder} would both go to {repo}; put {{folder}} into the name",
                )
