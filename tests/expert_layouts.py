"""Experts as quantized folders have them, whichever way a checkpoint stores them."""

from __future__ import annotations

import torch


def one_by_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors with experts in matrices of their own."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        parent, _, last = name.removesuffix(".weight").rpartition(".")
        if tensor.ndim == 3 and last == "gate_up_proj":
            for number, both in enumerate(tensor):
                gate, up = both.chunk(2)
                out[f"{parent}.{number}.gate_proj.weight"] = gate
                out[f"{parent}.{number}.up_proj.weight"] = up
        elif tensor.ndim == 3 and last == "down_proj":
            out |= {f"{parent}.{n}.down_proj.weight": one for n, one in enumerate(tensor)}
        else:
            out[name] = tensor
    return out
