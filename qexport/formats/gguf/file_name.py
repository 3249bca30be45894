"""File names as publishers write them, and shard names as llama.cpp reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qexport.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.families.view import ModelView
    from qexport.formats.gguf.options import GgufOptions

__all__ = ["file_stem", "model_stem", "shard_names"]


def model_stem(label: str) -> str:
    """The model's name as it may stand in a file name: no organisation, revision or odd characters.

    >>> model_stem("Qwen/Qwen3.5-9B@1a2b3c4d")
    'Qwen3.5-9B'
    """
    last = label.rstrip("/").rsplit("/", 1)[-1].split("@", 1)[0]
    return re.sub(r"[^\w.+-]+", "-", last).strip("-.") or "model"


def file_stem(view: ModelView, type_name: str, options: GgufOptions, *, imatrix: bool) -> str:
    """The file name without ``.gguf``: by default ``Name-MTP-Q4_K_M-imatrix``."""
    fields = {
        "name": model_stem(options.model_name or view.label),
        "mtp": "-MTP" if view.mtp_layers else "",
        "type": type_name,
        "imatrix": "-imatrix" if imatrix else "",
    }
    stem = options.file_name.removesuffix(".gguf")
    for field, value in fields.items():
        stem = stem.replace(f"{{{field}}}", value)
    if "{" in stem or "}" in stem:
        raise UsageProblem(
            f"the file name template {options.file_name!r} cannot be filled in",
            hint="It may use {name}, {mtp}, {type} and {imatrix}.",
        )
    if "/" in stem or "\\" in stem or stem.startswith("."):
        raise UsageProblem(f"{stem!r} is no file name: choose the folder with --out")
    return stem


def shard_names(stem: str, count: int) -> Sequence[str]:
    """``stem.gguf``, or ``stem-00001-of-0000N.gguf`` (llama.cpp src/llama.cpp, llama_split_path)."""
    if count == 1:
        return [f"{stem}.gguf"]
    return [f"{stem}-{index:05d}-of-{count:05d}.gguf" for index in range(1, count + 1)]
