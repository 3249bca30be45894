"""Reading a quantized folder with nothing but torch and safetensors, so that a peer's environment can."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """Every stored tensor."""
    out: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= load_file(file)
    return out


def raw(tensor: torch.Tensor) -> bytes:
    return np.asarray(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()).tobytes()


def digest_of(stored: dict[str, torch.Tensor]) -> dict[str, list[str | float]]:
    """For each quantized module: kind, its one float32 scale, a digest of what lies beside it.

    Kinds are ``NVFP4``, with levels and block scales in the digest, ``FP8``, with codes in it, and
    ``FP8_BLOCK``, which has no such scale, but those of its tiles in the digest.
    """
    found: dict[str, list[str | float]] = {}
    for name, tensor in sorted(stored.items()):
        module = name.rpartition(".")[0]
        if tensor.dtype == torch.uint8:
            scales = [stored.get(f"{module}.{last}") for last in ("weight_global_scale", "weight_scale_2")]
            (shared,) = [scale for scale in scales if scale is not None]
            parts, kind = [tensor, stored[f"{module}.weight_scale"]], "NVFP4"
        elif tensor.dtype == torch.float8_e4m3fn and name.endswith(".weight"):
            shared, parts, kind = stored[f"{module}.weight_scale"], [tensor], "FP8"
            if shared.ndim:
                shared, parts, kind = torch.tensor(1.0), [tensor, shared], "FP8_BLOCK"
        else:
            continue
        digest = hashlib.sha256(b"".join(raw(part) for part in parts)).hexdigest()[:16]
        found[module] = [kind, shared.item(), digest]
    return found
