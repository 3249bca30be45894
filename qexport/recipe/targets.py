"""From a recipe to the pipeline's targets: one for each artifact that is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qexport.pipeline.gguf import GgufTarget
from qexport.recipe.artifact import pending_matrix, with_name
from qexport.recipe.folder import FolderTarget
from qexport.recipe.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qexport.pipeline.export import Target
    from qexport.recipe.matrix_in import Matrix
    from qexport.recipe.recipe import Artifact, Recipe, Subject
    from qexport.recipe.select import Unit
    from qexport.verify.run import VerifyOptions

__all__ = ["to_targets"]


def to_targets(
    recipe: Recipe,
    subject: Subject,
    units: Sequence[Unit],
    out: Path,
    matrix: Matrix | None = None,
    *,
    prove: bool = True,
    llama_server: Path | None = None,
) -> list[Target]:
    """The targets of one subject.

    Args:
        units: what is asked for; those of other subjects are left out.
        out: the folder that holds the artifacts' folders.
        matrix: for artifacts that use importance; the one that is expected, then the one that was collected.
        prove: ``False`` verifies nothing, and receipts say so.
        llama_server: the user's own llama-server.
    """
    targets: list[Target] = []
    for artifact in recipe.artifacts:
        mine = [unit for unit in units if unit.subject == subject.key and unit.artifact == artifact.name]
        if not mine:
            continue
        folder = out / recipe.folder(subject, artifact)
        verify = artifact.verify if prove else None
        if verify is not None and llama_server is not None:
            verify = replace(verify, llama_server=llama_server)
        used = matrix if artifact.importance else None
        options = with_name(_options(artifact, used), subject.source.name)
        types = tuple(unit.type for unit in mine)
        targets.append(_target(artifact, types, options, folder, verify, used))
    return targets


def _options(artifact: Artifact, matrix: Matrix | None) -> Any:
    field = KINDS[artifact.kind].matrix
    if field is None or not pending_matrix(artifact.options, field):
        return artifact.options
    if matrix is None:
        raise ValueError(f"{artifact.name} is weighted, and there is no matrix")
    return replace(artifact.options, **{field: matrix.values})


def _target(
    artifact: Artifact,
    types: tuple[str, ...],
    options: Any,
    folder: Path,
    verify: VerifyOptions | None,
    matrix: Matrix | None,
) -> Target:
    if KINDS[artifact.kind].ladder:
        facts = None if matrix is None else matrix.facts
        return GgufTarget(types, folder, options, verify, facts=facts)
    described = None if matrix is None else matrix.described()
    return FolderTarget(artifact.kind, options, folder, verify, described)
