"""Logits without the matrix of them: a vocabulary of 250 000 is walked in slices, and only sums are kept.

The output matrix of a large model takes gigabytes as float32, and so do the logits of a few thousand
positions. Both are made a slice of the vocabulary at a time; the log of a sum of exponentials, the largest
logit and a divergence can all be added up slice by slice. The output matrix is read (decoded) once, whatever
the number of positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from qexport.evidence.output import capped, output_of, output_rows

if TYPE_CHECKING:
    from qexport.evidence.activations import HiddenStates
    from qexport.families.view import ModelView


_SLICE = 8192  # rows of the output matrix
_POSITIONS = 1024


def vocabulary(view: ModelView) -> int:
    """Rows of the output matrix."""
    return output_of(view).shape[0]


def slices(rows: int) -> Iterator[tuple[int, int]]:
    """The vocabulary in pieces ``[start, stop)``."""
    return ((start, min(rows, start + _SLICE)) for start in range(0, rows, _SLICE))


def logits(view: ModelView, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``(positions, slice)``, with Gemma's cap where the config has one."""
    return capped(view, states @ rows.t())


def batches(states: HiddenStates, first: int, device: str) -> Iterator[tuple[slice, torch.Tensor]]:
    """Every position from ``first`` of its chunk on, ``(positions, width)``, and its place among all of them.

    Always the same positions in the same order, so that places of two runs over one text mean the same.
    """
    chunks, size, width = states.shape
    kept = size - first
    step = max(1, _POSITIONS // max(1, kept))
    for start in range(0, chunks, step):
        stop = min(chunks, start + step)
        part = states.read(start, stop)[:, first:].reshape(-1, width)
        yield slice(start * kept, stop * kept), part.to(device)


class Tally:
    """For each position: log of the sum of exponentials, and the likeliest token.

    Attributes:
        top: float64 ``(positions,)``, the largest logit.
        token: int64 ``(positions,)``, whose it is; the first of equals.
    """

    def __init__(self, positions: int) -> None:
        self.top = torch.full((positions,), -torch.inf, dtype=torch.float64)
        self.token = torch.zeros(positions, dtype=torch.int64)
        self._sum = torch.zeros(positions, dtype=torch.float64)

    def add(self, places: slice, found: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Count logits ``(positions, slice)`` of tokens from ``first`` on.

        Returns:
            The exponentials relative to the largest logit so far, float32 ``(positions, slice)``, and by how
            much sums of earlier ones have to shrink, float64 ``(positions,)``.
        """
        most, best = found.max(dim=-1)
        before = self.top[places]
        after = torch.maximum(before, most.double().cpu())
        self.token[places] = torch.where(after > before, best.cpu() + first, self.token[places])
        shrink = torch.exp(before - after)
        shares = torch.exp(found - after.to(found)[:, None])
        self._sum[places] = self._sum[places] * shrink + shares.sum(-1, dtype=torch.float64).cpu()
        self.top[places] = after
        return shares, shrink

    @property
    def mass(self) -> torch.Tensor:
        """Sum of exponentials relative to ``top``, float64 ``(positions,)``."""
        return self._sum

    @property
    def log_sum(self) -> torch.Tensor:
        """float64 ``(positions,)``."""
        return self.top + self._sum.log()


def picked(
    view: ModelView,
    states: HiddenStates,
    first: int,
    tokens: torch.Tensor,
    device: str,
    *,
    head: bool = False,
) -> torch.Tensor:
    """The logit of one token for each position of :func:`batches`, float64 ``(positions,)``."""
    wanted, places = torch.unique(tokens, return_inverse=True)
    output = output_of(view, head=head)
    table = torch.cat([output_rows(output, row, row + 1, device) for row in wanted.tolist()])
    found = torch.empty(len(tokens), dtype=torch.float64)
    for at, part in batches(states, first, device):
        found[at] = capped(view, (part * table[places[at].to(device)]).sum(-1)).double().cpu()
    return found
