"""Tiny models with heads, and text of ids for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zoo_types import Zoo

from qexport.evidence.chained import HeadStream
from qexport.evidence.observe import Observer
from qexport.evidence.options import StreamOptions
from qexport.families.view import ModelView
from qexport.recipe.choice import ModelChoice
from qexport.run.model import examine

EXACT = StreamOptions(precision="float32", threads=1)
TINY: dict[str, Any] = {
    "hidden": 64,
    "intermediate": 64,
    "layers": 4,
    "heads": 2,
    "head_dim": 32,
    "mtp": True,
}


def view_of(folder: Path, head: Path | None = None) -> ModelView:
    mode = "auto" if head is None else "graft"
    choice = ModelChoice(str(folder), mtp=mode, mtp_from=None if head is None else str(head), vision="drop")
    return examine(choice, download=False).repaired.view()


def tiny(zoo: Zoo, name: str = "qwen3_5", **changes: Any) -> Path:
    return zoo(name, **{**TINY, **changes})


def final_of(stream: HeadStream, ids: np.ndarray) -> torch.Tensor:
    """The trunk's states, float32."""
    final = torch.empty(*ids.shape, stream.width)

    def keep(start: int, hidden: torch.Tensor) -> None:
        final[start : start + len(hidden)] = hidden

    stream.trunk(ids, Observer(), final=keep)
    return final


def ids_file(path: Path, documents: int, length: int, vocabulary: int, **fields: Any) -> Path:
    """JSON lines of ids: documents of tokens by chance, no two alike."""
    lines = []
    for number in range(documents):
        random = np.random.default_rng([3, number])
        ids = random.integers(0, vocabulary, length)
        lines.append(json.dumps({"input_ids": ids.tolist(), **fields}))
    path.write_text("\n".join(lines))
    return path
