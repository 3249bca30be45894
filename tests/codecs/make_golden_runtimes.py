"""Regenerates tests/codecs/golden_runtimes.json: what MLX, ModelOpt and compressed-tensors write.

    pip install 'mlx[cpu]' compressed-tensors nvidia-modelopt requests numba
    PYTHONPATH=. python tests/codecs/make_golden_runtimes.py

Hashes of whole rows, a few small blocks in full, and the versions they come from. An environment of their own
is best: the three hold other packages back.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import runtime_oracles as oracles
import torch
from codec_strategies import golden_rows

GOLDEN = Path(__file__).parent / "golden_runtimes.json"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHARED = np.float32(2.0**-13)
"""A global scale with which ModelOpt and compressed-tensors agree."""


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def rows_in(dtype: torch.dtype) -> torch.Tensor:
    """The middle half of 256 rows of ``golden_rows``, in ``dtype``."""
    return torch.from_numpy(golden_rows(256, 512)[0])[:, 128:384].to(dtype).contiguous()


def ramp(n: int) -> torch.Tensor:
    return torch.from_numpy((np.arange(n, dtype=np.float32) - np.float32(11.3)) * np.float32(0.0123))[None]


def main() -> None:
    hashes = {}
    for dtype in DTYPES:
        name, rows = str(dtype).removeprefix("torch."), rows_in(dtype)
        for bits in (2, 3, 4, 5, 6, 8):
            for group in (32, 64, 128):
                made = oracles.mlx_affine(rows, bits, group)
                packed, scales, biases = made
                key = f"affine {bits} {group} {name}"
                hashes[key] = digest(packed.tobytes(), oracles.raw(scales), oracles.raw(biases))
                hashes[f"{key} decoded"] = digest(oracles.raw(oracles.mlx_dequantized(made, bits, group)))
        scales = oracles.ct_fp8_scales(rows)
        codes = oracles.ct_fp8_codes(rows, scales)
        hashes[f"fp8 {name}"] = digest(codes.tobytes(), oracles.raw(scales))
        hashes[f"fp8 {name} decoded"] = digest(oracles.raw(oracles.ct_fp8_dequantized(codes, scales)))
        codes, scales = oracles.ct_fp8_block(rows)
        hashes[f"fp8 compressed-tensors {name}"] = digest(codes.tobytes(), oracles.raw(scales))
        codes, scale = oracles.modelopt_fp8(rows)
        hashes[f"fp8 tensor {name}"] = digest(codes.tobytes(), np.float32(scale).tobytes())
        own = oracles.modelopt_global_scale(rows)
        blocks = oracles.modelopt_nvfp4(rows, own)
        hashes[f"nvfp4 {name}"] = digest(own.tobytes(), *(part.tobytes() for part in blocks))
        decoded = oracles.modelopt_dequantized(blocks, own)
        hashes[f"nvfp4 {name} decoded"] = digest(oracles.raw(decoded))
    blocks = oracles.ct_nvfp4(rows_in(torch.float32)[:255], SHARED)  # no block of zeros
    hashes["nvfp4 compressed-tensors"] = digest(*(part.tobytes() for part in blocks))
    hashes["nvfp4 compressed-tensors decoded"] = digest(
        oracles.raw(oracles.ct_nvfp4_dequantized(blocks, SHARED))
    )

    packed, scale, bias = oracles.mlx_affine(ramp(32), 6, 32)
    levels, e4m3 = oracles.modelopt_nvfp4(ramp(32), SHARED)
    small = {
        "affine 6 32": packed.tobytes() + oracles.raw(scale) + oracles.raw(bias),
        "nvfp4": levels.tobytes() + e4m3.tobytes(),
    }
    packages = ("mlx", "compressed-tensors", "nvidia-modelopt", "torch")
    golden = {
        "versions": {package: version(package).split("+")[0] for package in packages},
        "hashes": hashes,
        "blocks": {name: base64.b64encode(data).decode() for name, data in small.items()},
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
