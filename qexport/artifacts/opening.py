"""From a path to an artifact: a GGUF file, or a folder of any format that qexport reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qexport.artifacts.gguf import open_gguf
from qexport.artifacts.hf import open_hf
from qexport.artifacts.mlx import DRAFTER_TYPES, open_mlx
from qexport.checkpoint.config import read_json
from qexport.checkpoint.header import read_header
from qexport.checkpoint.local import LocalCheckpoint
from qexport.errors import InputError, UsageProblem

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Artifact
    from qexport.families.view import ModelView


def open_artifact(path: Path, *, like: ModelView | None = None, head: Path | None = None) -> Artifact:
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
    if path.is_file():
        return open_gguf(path, like, head)
    folder = LocalCheckpoint(path, quantized=True)
    config = read_json(folder, "config.json")
    if _is_mlx(folder, path, config):
        return open_mlx(folder, path, config, head)
    if head is not None:
        raise UsageProblem(f"{folder.label}: the MTP head of such a folder is inside it, not in {head.name}")
    return open_hf(folder, config)


def _is_mlx(folder: LocalCheckpoint, path: Path, config: dict[str, object]) -> bool:
    """MLX says so in every file's header, and in the config if anything is quantized."""
    if "quantization" in config or config.get("model_type") in DRAFTER_TYPES:
        return True
    if config.get("quantization_config"):
        return False
    file = next((tensor.file for tensor in folder.tensors.values()), None)
    if file is None:
        raise InputError(f"{folder.label} holds no tensors")
    return read_header(path / file)[1].get("format") == "mlx"
