"""The output matrix, by which hidden states become logits: whose it is, its rows, Gemma's bound.

A vocabulary of 250 000 is walked in slices; nothing here holds the whole of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.families.roles import Role

if TYPE_CHECKING:
    import torch

    from qexport.families.view import ModelTensor, ModelView


def output_of(view: ModelView, *, head: bool = False) -> ModelTensor:
    """What hidden states are multiplied with: ``lm_head``, or the embedding where the two are tied.

    Args:
        head: the MTP head's own, where it has one.

    Raises:
        InputError: there is none.
    """
    own = view.find(Role.MTP_OUTPUT) if head else None
    found = own or view.find(Role.OUTPUT) or view.find(Role.TOKEN_EMBD)
    if found is None:
        raise InputError(f"{view.label} has neither lm_head nor embedding")
    return found


def output_rows(
    output: ModelTensor,
    start: int,
    stop: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Rows ``[start, stop)`` of the output matrix, ``(stop - start, width)``, float32 by default."""
    import torch

    parts = []
    for piece in output.data.rows(start, stop):
        rows = piece.checkpoint.read_rows(piece.name, piece.start, piece.stop)
        parts.append(rows.to(device=device, dtype=dtype or torch.float32))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def cap_of(view: ModelView) -> float:
    """Gemma's bound of logits; 0 where the config has none."""
    return float(view.text.get("final_logit_softcapping") or 0)


def capped(view: ModelView, logits: torch.Tensor) -> torch.Tensor:
    """Logits within the bound, where there is one."""
    import torch

    cap = cap_of(view)
    return torch.tanh(logits / cap) * cap if cap else logits
