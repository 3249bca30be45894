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

from qexport.errors import InputError
from qexport.families.roles import Role

if TYPE_CHECKING:
    from qexport.checkpoint.tensors import LogicalTensor
    from qexport.evidence.activations import HiddenStates
    from qexport.families.view import ModelView


_SLICE = 8192  # rows of the output matrix
_POSITIONS = 1024


def _output(view: ModelView, *, head: bool = False) -> LogicalTensor:
    """What hidden states are multiplied with: ``lm_head``, or the embedding where the two are tied; ``head``:
    the MTP head's own where it has one."""
    found = (
        (view.find(Role.MTP_OUTPUT) if head else None) or view.find(Role.OUTPUT) or view.find(Role.TOKEN_EMBD)
    )
    if found is None:
        raise InputError(f"{view.label} has neither lm_head nor embedding")
    return found.data


def vocabulary(view: ModelView) -> int:
    """Rows of the output matrix."""
    return _output(view).shape[0]


def slices(rows: int) -> Iterator[tuple[int, int]]:
    """The vocabulary in pieces ``[start, stop)``."""
    return ((start, min(rows, start + _SLICE)) for start in range(0, rows, _SLICE))


def output_rows(
    view: ModelView, start: int, stop: int, device: str = "cpu", *, head: bool = False
) -> torch.Tensor:
    """Rows of the output matrix, float32 ``(stop - start, width)``."""
    parts = []
    for piece in _output(view, head=head).rows(start, stop):
        rows = piece.checkpoint.read_rows(piece.name, piece.start, piece.stop)
        parts.append(rows.to(device=device, dtype=torch.float32))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def logits(view: ModelView, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``(positions, slice)``, with Gemma's cap where the config has one."""
    return _capped(view, states @ rows.t())


def _capped(view: ModelView, found: torch.Tensor) -> torch.Tensor:
    cap = view.text.get("final_logit_softcapping")
    return found if not cap else torch.tanh(found / cap) * cap


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
    table = torch.cat([output_rows(view, row, row + 1, device, head=head) for row in wanted.tolist()])
    found = torch.empty(len(tokens), dtype=torch.float64)
    for at, part in batches(states, first, device):
        found[at] = _capped(view, (part * table[places[at].to(device)]).sum(-1)).double().cpu()
    return found
