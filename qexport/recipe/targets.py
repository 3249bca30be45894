"""From a recipe to the pipeline's targets: one for each artifact that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qexport.formats.merged.format import MergedOptions
from qexport.formats.registry import FORMATS
from qexport.pipeline.folders import FolderTarget
from qexport.pipeline.gguf import GgufTarget
from qexport.recipe.artifact import pending_matrix, with_name
from qexport.recipe.merged import MergedTarget

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qexport.pipeline.export import Target
    from qexport.recipe.matrix_in import Matrix
    from qexport.recipe.recipe import Artifact, Recipe, Subject
    from qexport.recipe.select import Unit
    from qexport.verify.options import VerifyOptions


@dataclass(frozen=True)
class Runtimes:
    """What this machine proves artifacts with; recipes say which runtime, not where it is.

    Attributes:
        llama_server: the user's own, instead of the one inside xllamacpp.
        pythons: by the name of a runtime (``vllm``), the Python that has it.
    """

    llama_server: Path | None = None
    pythons: Mapping[str, Path] = field(default_factory=dict)

    def of(self, verify: VerifyOptions | None) -> VerifyOptions | None:
        """The options of an artifact, completed."""
        if verify is None:
            return None
        return replace(
            verify, llama_server=self.llama_server, runtime_python=self.pythons.get(verify.runtime)
        )


def to_targets(
    recipe: Recipe,
    subject: Subject,
    units: Sequence[Unit],
    out: Path,
    matrix: Matrix | None = None,
    runtimes: Runtimes | None = None,
) -> list[Target]:
    """The targets of one subject.

    Args:
        units: what is asked for; those of other subjects are left out.
        out: the folder that holds the artifacts' folders.
        matrix: for artifacts that use importance; the one that is expected, then the one that was collected.
        runtimes: what proves them here; ``None`` proves nothing, and receipts say so.
    """
    targets: list[Target] = []
    for artifact in recipe.artifacts:
        mine = [unit for unit in units if unit.subject == subject.key and unit.artifact == artifact.name]
        if not mine:
            continue
        folder = out / recipe.folder(subject, artifact)
        verify = None if runtimes is None else runtimes.of(artifact.verify)
        used = matrix if artifact.importance else None
        options = with_name(_options(artifact, used), subject.source.name)
        types = tuple(unit.type for unit in mine)
        targets.append(_target(artifact, types, options, folder, verify, used))
    return targets


def _options(artifact: Artifact, matrix: Matrix | None) -> Any:
    field = FORMATS[artifact.kind].matrix
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
    facts = None if matrix is None else matrix.facts
    if FORMATS[artifact.kind].ladder:
        return GgufTarget(types, folder, options, verify, facts=facts)
    if isinstance(options, MergedOptions):
        return MergedTarget(folder, verify)
    return FolderTarget(options, folder, verify, facts)
