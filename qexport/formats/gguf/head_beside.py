"""The file of an MTP head beside that of its trunk, as llama.cpp finds it, and whether it is that trunk's.

``common/download.cpp``, ``find_best_mtp``: of the files with ``mtp-`` in their names, in the model's folder
or above it, the one in the nearest folder, then the nearest in bits to the model. What is in it is not asked
there. Here one that was made for another model is told by its sizes, and by the matrices that both files
have (embedding, final norm, output): of one model they differ by rounding only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qexport.container.gguf_file import GgufInfo, homes_of, read_gguf, shard_paths
from qexport.errors import InputError
from qexport.formats.gguf.file_name import HEAD_PREFIX
from qexport.formats.gguf.rows import GgufRows, stored_rows

if TYPE_CHECKING:
    from pathlib import Path


_SHARED = ("token_embd.weight", "output_norm.weight", "output.weight")
_SAME_KEYS = ("embedding_length", "context_length", "attention.head_count", "attention.head_count_kv")
_SAMPLE = 16  # rows
# Of the norm of the rows. Types of two bits are at 0.3; another model's rows at 1 and more.
_APART = 0.6


def head_beside(model: Path, info: GgufInfo) -> tuple[Path | None, str]:
    """The head's file, where the model's has none in it; or why none of those beside it is its.

    Args:
        model: the (first) file of the model. info: its header.
    """
    if info.nextn_layers or info.head_tensors:
        return None, ""
    reasons: list[str] = []
    for path in _candidates(model, info):
        try:
            why = _unlike(path, read_gguf(path), model, info)
        except InputError as error:
            why = error.message
        if not why:
            return path, ""
        reasons.append(why if why.startswith(path.name) else f"{path.name}: {why}")
    return None, "; ".join(reasons)


def _candidates(model: Path, info: GgufInfo) -> list[Path]:
    """In llama.cpp's order."""
    bits = _bits(info.file_type)

    def order(path: Path) -> tuple[int, str]:
        return abs(_bits(path.stem.rsplit("-", 1)[-1]) - bits), path.name

    found = (
        sorted((path for path in folder.glob("*.gguf") if HEAD_PREFIX in path.name), key=order)
        for folder in homes_of(model)
    )
    return [path for paths in found for path in paths if shard_paths(path)[0] == path]


def _bits(type_name: str) -> int:
    """``extract_quant_bits``: the first number in the type."""
    match = re.search(r"\d+", type_name)
    return int(match[0]) if match else 0


def _unlike(path: Path, head: GgufInfo, model: Path, info: GgufInfo) -> str:
    """Why the head is not this model's; empty where it is."""
    if not head.head_only:
        return "no MTP head alone"
    if head.architecture != info.architecture:
        return f"the head of a {head.architecture!r} model, this is {info.architecture!r}"
    blocks = f"{info.architecture}.block_count"
    wanted = {blocks: _number(info, blocks) + head.nextn_layers}
    wanted |= {key: _number(info, key) for key in (f"{info.architecture}.{each}" for each in _SAME_KEYS)}
    for key, value in wanted.items():
        if (found := _number(head, key)) != value:
            return f"the head of another model: its {key} is {found}, not {value}"
    ours, theirs = stored_rows(model, info), stored_rows(path, head)
    for name in _SHARED:
        if (name in ours) != (name in theirs):
            return f"the head of another model: only one of both has {name}"
        if name in ours and (why := _rows_apart(ours[name][1], theirs[name][1])):
            return f"the head of another model: its {name} {why}"
    return ""


def _rows_apart(one: GgufRows, other: GgufRows) -> str:
    import torch

    if one.shape != other.shape:
        return f"is {list(other.shape)}, not {list(one.shape)}"
    rows = one.shape[0] if len(one.shape) > 1 else 1
    picked = sorted({rows * at // _SAMPLE for at in range(_SAMPLE)})
    here, there = (torch.cat([each.read(at, at + 1).float() for at in picked]) for each in (one, other))
    error = float((there - here).norm() / here.norm().clamp(min=1e-30))
    return "" if error < _APART else f"holds other numbers (relative error {error:.2f})"


def _number(info: GgufInfo, key: str) -> int:
    value = info.metadata.get(key, 0)
    return value if isinstance(value, int) else 0
