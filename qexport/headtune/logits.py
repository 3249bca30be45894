"""Logits of trunk and head over the whole vocabulary, a slice of positions at a time.

The output matrix is in memory once (a head of its own kind has a second one), logits never are as a whole:
of a vocabulary of 250 000, those of four thousand positions take 4 GB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

from qexport.evidence.observe import Observer, Products
from qexport.evidence.output import capped, output_of, output_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qexport.families.view import ModelView


_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""At a time, of the trunk and of each draft."""
_ROWS = 8192  # that are read at a time


class Logits:
    """The output matrices of a model.

    Args:
        exact: keep them in float32; else in bf16, as they are stored.
        at_once: logits that are made at a time; by default what suits the device.
    """

    def __init__(
        self, view: ModelView, device: torch.device, *, exact: bool, at_once: int | None = None
    ) -> None:
        self._view = view
        self._at_once = at_once or _LOGITS[device.type]
        self.device = device
        self.size = output_of(view).shape[0]
        dtype = torch.float32 if exact else torch.bfloat16
        self._trunk = self._read(head=False, dtype=dtype)
        self._head = self._trunk
        if output_of(view, head=True) is not output_of(view):
            self._head = self._read(head=True, dtype=dtype)
        self._products = Products(Observer(), wide=True)

    def slices(self, anchors: int) -> Iterator[tuple[int, int]]:
        """Anchors of a chunk in pieces, of which the logits fit."""
        step = max(1, self._at_once // self.size)
        return ((start, min(anchors, start + step)) for start in range(0, anchors, step))

    def logits(self, states: torch.Tensor, *, head: bool = False) -> torch.Tensor:
        """Float32 ``(positions, vocabulary)``; rounded is what goes in, not what comes out."""
        weight = self._head if head else self._trunk
        return capped(self._view, self._products.product(states, weight).float())

    def trained(self, states: torch.Tensor) -> torch.Tensor:
        """Those of the head, through which gradients go back to ``states``."""
        return capped(self._view, linear(states.to(self._head.dtype), self._head).float())

    def _read(self, *, head: bool, dtype: torch.dtype) -> torch.Tensor:
        matrix = output_of(self._view, head=head)
        whole = torch.empty(matrix.shape, dtype=dtype, device=self.device)
        for start in range(0, self.size, _ROWS):
            stop = min(self.size, start + _ROWS)
            whole[start:stop] = output_rows(matrix, start, stop, self.device, dtype)
        return whole
