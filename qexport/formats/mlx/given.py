"""A choice of types that is read: from JSON, or from another MLX folder's config and tensor names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.assign.assignment import PLAIN, Assignment, read_types
from qexport.checkpoint.config import read_json
from qexport.checkpoint.local import LocalCheckpoint
from qexport.errors import InputError
from qexport.formats.mlx.dialect import module_path, stored_name
from qexport.formats.mlx.options import Scheme

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from qexport.doctor.repaired import Repaired
    from qexport.families.family import Dialect
    from qexport.families.view import ModelTensor


def given_types(
    path: Path | Assignment | None, repaired: Repaired, trunk: Sequence[ModelTensor], dialect: Dialect
) -> Assignment | None:
    """The types that the file or folder says.

    Raises:
        InputError: it is damaged, or for another model.
        UsageProblem: a type that MLX does not have.
    """
    if path is None:
        return None
    if not isinstance(path, Assignment) and path.is_dir():
        given = _of_folder(path, {tensor.name: stored_name(dialect, repaired, tensor) for tensor in trunk})
    else:
        given = read_types(path, "mlx")
    given.check({tensor.name for tensor in trunk}, lambda word: word == PLAIN or Scheme.labelled(word))
    return given


def _of_folder(path: Path, names: Mapping[str, str]) -> Assignment:
    """What a folder stores under these names; there are scales where mlx-lm takes it for quantized."""
    folder = LocalCheckpoint(path, quantized=True)
    settings = read_json(folder, "config.json").get("quantization")
    if not isinstance(settings, dict):
        raise InputError(f"{folder.label}: config.json has no quantization; it is no quantized MLX folder")
    types: dict[str, str] = {}
    for name, stored in names.items():
        module = module_path(stored)
        if f"{module}.scales" in folder.tensors:
            own = settings.get(module)
            types[name] = _scheme(own if isinstance(own, dict) else settings, folder.label).label
        elif stored in folder.tensors:
            types[name] = PLAIN
    if not types:
        raise InputError(f"{folder.label} has none of this model's tensors: it is another model's")
    return Assignment("mlx", folder.label, types)


def _scheme(settings: Mapping[str, Any], label: str) -> Scheme:
    try:
        scheme = Scheme(settings["group_size"], settings["bits"], settings.get("mode", "affine"))
    except KeyError as error:
        raise InputError(f"{label}: config.json has a quantization without {error.args[0]}") from None
    return scheme
