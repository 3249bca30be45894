"""Encoding a whole tensor at once, as tests like it: a stored type, and what is known of its matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qexport.codecs.contract import Matrices, StoredType, ggml_stored
from qexport.codecs.engines import ENGINES, Engine, encode_rows


@dataclass(frozen=True, eq=False)
class Encoder:
    """A type with evidence; streams come in one piece each, a single one without a tuple around it."""

    stored: StoredType
    importance: np.ndarray | None = None
    height: int | None = None
    largest: np.ndarray | None = None
    engines: Sequence[Engine] = ENGINES

    @property
    def known(self) -> Matrices:
        return Matrices(self.height, self.importance, self.largest)

    def encode(self, rows: torch.Tensor, first_row: int) -> Any:
        parts = encode_rows(self.stored, rows, first_row, self.known, self.engines)
        streams = tuple(np.concatenate(pieces) for pieces in zip(*parts, strict=True))
        return streams if len(streams) > 1 else streams[0]


def make_encoder(
    type_name: str,
    importance: np.ndarray | None = None,
    height: int | None = None,
    engines: Sequence[Engine] = ENGINES,
) -> Encoder:
    """Of a ggml type; importance may be one row, ``(columns,)``."""
    table = importance[None] if importance is not None and importance.ndim == 1 else importance
    return Encoder(ggml_stored(type_name), table, height, engines=engines)


def largest_of(rows: torch.Tensor, matrices: int = 1) -> np.ndarray:
    """What the pass finds before: the largest finite magnitude of each matrix."""
    known = torch.where(rows.isfinite(), rows.abs().double(), 0)
    return known.view(matrices, -1).amax(1).numpy()
