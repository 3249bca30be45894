"""From receipts to a :class:`Report`. Nothing else is read: no weights, no runtimes; of files the sizes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.formats.registry import place_of
from qexport.receipt.folder import known_in
from qexport.receipt.towers import seen_through
from qexport.receipt.words import facts, repairs
from qexport.report.report import Model, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from qexport.receipt.types import Artifact, Gate


def gather(
    folders: Sequence[Path],
    *,
    gates: Iterable[Gate] = (),
    compare: Sequence[Path] = (),
    say: Callable[[str], None] = lambda words: None,
) -> Report:
    """Everything that receipts in or just above the folders know.

    Args:
        folders: of the model that the report is about. Where they hold artifacts of several sources, the
            first source is that model and the others are compared with it.
        gates: limits and their outcome; those that receipts have noted where none are given.
        compare: folders of the model to compare with.
        say: told what receipts hold that cannot be used.

    Raises:
        InputError: a folder has no receipt, or one that cannot be used, or no artifact at all is known.
    """
    models = [*_models(folders, say), *_models(compare, say)]
    if not models:
        raise InputError("There is nothing to report on: these receipts know importance matrices only.")
    found = [artifact for _, artifacts in models for artifact in artifacts]
    newest = max((artifact.written_at or 0.0 for artifact in found), default=0.0)
    return Report(
        models=tuple(_model(title, artifacts) for title, artifacts in models),
        gates=tuple(gates) or tuple(gate for artifact in found for gate in artifact.gates),
        written=datetime.fromtimestamp(newest, UTC).date().isoformat() if newest else "",
    )


def _model(title: str, artifacts: Sequence[Artifact]) -> Model:
    artifacts = seen_through(artifacts)
    made = [each for each in artifacts if each.is_model]
    beside = [each for each in artifacts if not each.is_model]
    return Model(
        title,
        tuple(sorted(made, key=_place)),
        facts(made),
        repairs(made),
        tuple(each for each in beside if each.lost is None),
        tuple(each.lost for each in beside if each.lost is not None),
    )


def _models(folders: Sequence[Path], say: Callable[[str], None]) -> list[tuple[str, list[Artifact]]]:
    """Artifacts by their source; each entry once, whichever folder named it."""
    seen: set[tuple[str, ...]] = set()
    sources: dict[str, list[Artifact]] = {}
    for folder in folders:
        known = known_in(folder)
        for note in known.notes:
            say(note)
        for artifact in known.artifacts:
            mark = (artifact.kind, artifact.label, *(file.sha256 for file in artifact.files))
            if mark not in seen:
                seen.add(mark)
                source = artifact.source
                sources.setdefault(source.hub_id or source.label, []).append(artifact)
    return [
        (_title(label, found), found)
        for label, found in sources.items()
        if any(each.is_model for each in found)
    ]


def _title(label: str, found: Sequence[Artifact]) -> str:
    if found[0].source.hub_id:
        return label
    # A folder is called "model" or "merged" as often as not; GGUF files carry the model's own name.
    names = (artifact.model_name for artifact in found)
    return next((name for name in names if name), label) or "a model"


def _place(artifact: Artifact) -> tuple[int, bool, int, str]:
    return place_of(artifact.format), artifact.is_drafter, artifact.size, artifact.label
