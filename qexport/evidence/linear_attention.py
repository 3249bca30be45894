"""Gated DeltaNet on a CPU: what transformers computes, in pieces that stay in the processor's cache.

transformers' own functions are written to be read: every step makes a tensor for all of the text and all
heads, and their time goes to memory. Here a piece of 64 tokens goes through all steps before the next one is
begun. The sums are the same ones, in another order. CUDA devices have kernels of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

_PIECE = 64
_TINY = 1e-6  # transformers' and FLA's, inside the norm of queries and keys


@contextmanager
def in_pieces(model: Any) -> Iterator[None]:
    """While it lasts the code that ``model`` is made of calls the functions of this module."""
    code = sys.modules[type(model).__module__]
    ours = {"torch_chunk_gated_delta_rule": gated_delta_rule, "causal_conv1d_fn": causal_convolution}
    before = {name: vars(code)[name] for name in ours if name in vars(code)}
    vars(code).update((name, ours[name]) for name in before)
    try:
        yield
    finally:
        vars(code).update(before)


def gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Outputs ``(texts, tokens, heads, values)``, and the last state where it is asked for.

    Args:
        query, key: ``(texts, tokens, heads, keys)``.
        value: ``(texts, tokens, heads, values)``.
        g: logarithms of decays, ``(texts, tokens, heads)``.
        beta: how much a token replaces of what its key had, likewise.
    """
    texts, _, heads, keys = key.shape
    state = initial_state
    if state is None:
        state = value.new_zeros((texts, heads, keys, value.shape[-1]), dtype=torch.float32)
    later = torch.ones(_PIECE, _PIECE, dtype=torch.bool, device=key.device).triu(1)
    given = []
    pieces = (
        each.transpose(1, 2).split(_PIECE, dim=2)  # type: ignore[no-untyped-call]
        for each in (query, key, value, g, beta)
    )
    for q, k, v, forgotten, strength in zip(*pieces, strict=True):
        q, k, v = (each.float().contiguous() for each in (q, k, v))
        if use_qk_l2norm_in_kernel:
            q, k = (each * torch.rsqrt(each.square().sum(-1, keepdim=True) + _TINY) for each in (q, k))
        strength = strength.float().unsqueeze(-1)
        decay = forgotten.float().cumsum(-1)  # since the piece's beginning, for each token
        since, left = decay.exp().unsqueeze(-1), (decay[..., -1:] - decay).exp().unsqueeze(-1)
        size = decay.shape[-1]
        between = (
            (decay.unsqueeze(-1) - decay.unsqueeze(-2)).masked_fill(later[:size, :size], -torch.inf).exp()
        )
        q, turned, taken = q * keys**-0.5, k.transpose(-1, -2), k * strength
        # Each token's value is corrected by what earlier ones have left under its key.
        system = (taken @ turned) * between
        found = v * strength - (taken * since) @ state
        new = torch.linalg.solve_triangular(system, found, upper=False, unitriangular=True)
        seen = (q * since) @ state + ((q @ turned) * between) @ new
        given.append(seen.transpose(1, 2))
        state = state * since[..., -1:, :] + (k * left).transpose(-1, -2) @ new
    return torch.cat(given, dim=1).to(query.dtype), state if output_final_state else None


def causal_convolution(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> torch.Tensor:
    """Each channel's latest values, weighted: ``(texts, channels, tokens)`` as they come.

    Args:
        weight: ``(channels, how many)``, the token's own last.
    """
    rows, kernel = hidden.transpose(1, 2), weight.shape[-1]
    # On the way back each piece would cost as much as all of them.
    step = rows.shape[1] if hidden.requires_grad else _PIECE
    padded = functional.pad(rows[:, :step], (0, 0, kernel - 1, 0)).to(weight.dtype)
    taps = weight.t().contiguous()
    given = []
    for start in range(0, rows.shape[1], step):
        stop = min(rows.shape[1], start + step)
        if start:
            padded = rows[:, start - kernel + 1 : stop].to(weight.dtype)
        size = stop - start
        out = padded[:, kernel - 1 : kernel - 1 + size] * taps[-1]
        for tap in range(kernel - 1):
            out = torch.addcmul(out, padded[:, tap : tap + size], taps[tap])
        if bias is not None:
            out = out + bias
        given.append(out if activation is None else _activated(out, activation))
    return torch.cat(given, dim=1).to(hidden.dtype).transpose(1, 2)


def _activated(values: torch.Tensor, name: str) -> torch.Tensor:
    from transformers.activations import ACT2FN

    activated: torch.Tensor = ACT2FN[name](values)
    return activated
