"""From a path to what lies there: a file or a folder of any layout that qexport reads, ours or others'."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qexport.artifacts.layout import ArtifactLayout, OnDisk
from qexport.errors import InputError
from qexport.formats.registry import layouts

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.families.view import ModelView


def open_artifact(path: Path, *, like: ModelView | None = None, head: Path | None = None) -> Opened:
    """Open what lies at ``path``, written by qexport or by anybody else. Reads headers and small files.

    Args:
        path: a GGUF file (any of its shards), or a folder: plain safetensors, MLX, native FP8,
            compressed-tensors, ModelOpt.
        like: the model that it was made from; a GGUF cannot be opened without.
        head: its MTP head, where that is a file or folder of its own and not found by its name: MLX's
            drafter folder (``NAME-MTP``) or a ``mtp-*.gguf``.

    Raises:
        InputError: it cannot be read, is no model, or is of another model than ``like``.
        UsageProblem: ``head`` was given to a format whose head is always inside.
    """
    found = OnDisk(path, like, head)
    return layout_of(found).open(found)


def layout_of(found: OnDisk) -> ArtifactLayout:
    """Raises InputError: a folder that cannot be read, or a quantization method that qexport cannot."""
    known = layouts()
    layout = next((each for each in known if each.opens(found)), None)
    if layout is None:
        methods = ", ".join(sorted(method for each in known for method in each.methods))
        raise InputError(
            f"{found.folder.label}: quant_method {found.quantization.get('quant_method')!r} is not one that "
            "qexport reads",
            hint=f"It reads {methods}.",
        )
    return layout
