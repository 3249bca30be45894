"""What a recipe asks for of one artifact, as a hash: same hash, same wishes, whatever the file's layout.

It goes into receipts, so that who looks at a repository knows whether it holds what the recipe asks for
today. Where things are published, and which of the types are, is no part of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qexport.recipe.recipe import AskedArtifact, Recipe, RecipeModel


def asked_sha256(recipe: Recipe, subject: RecipeModel, artifact: AskedArtifact) -> str:
    """Of the model, how its head and tower are treated, the artifact's options but for its types, the
    calibration with the content of its files, verification, gates, and how much is measured."""
    options = replace(artifact.options, types=()) if artifact.format.ladder else artifact.options
    choice = asdict(subject.choice)
    if subject.tuning is not None:  # once it is tuned, the head is grafted from a folder of this run
        choice |= {"tuned": None, "mtp": "tune"}
    calibration = None
    if recipe.calibration is not None and (artifact.importance or _reads(options)):
        calibration = asdict(recipe.calibration)
    wishes = [
        choice,
        subject.given,
        subject.tuning,
        [artifact.kind, options, artifact.verify, artifact.gates, artifact.unverified],
        calibration,
        recipe.measure,
    ]
    return hashlib.sha256(json.dumps(wishes, sort_keys=True, default=_plain).encode()).hexdigest()


def _reads(options: Any) -> bool:
    """Whether a text is read for it besides: for error feedback, scales of inputs, or to choose the best."""
    return any(getattr(options, name, None) for name in ("feedback", "input_scales", "quality"))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return hashlib.sha256(value.read_bytes()).hexdigest() if value.is_file() else value.name
    return repr(value)
