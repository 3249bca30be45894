"""Regenerates tests/codecs/golden_mlx.json: what MLX's float modes write, and what the weighted fit does.

    pip install 'mlx[cpu]'
    PYTHONPATH=. python tests/codecs/make_golden_mlx.py

The float modes are hashes of mx.quantize. The weighted fit is our own: its hashes hold it to one result on
every machine. That it is better is test_mlx_encoders.py.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import runtime_oracles as oracles
import torch
from encoding import Encoder
from make_golden_runtimes import DTYPES, digest, rows_in

from qexport.codecs.contract import MlxAffine
from qexport.codecs.mlx_affine import BITS, GROUPS
from qexport.codecs.mlx_float import FLOAT_MODES

GOLDEN = Path(__file__).parent / "golden_mlx.json"


def importance(columns: int) -> np.ndarray:
    """Uneven, the same everywhere: powers of two by a fixed pattern."""
    return np.exp2((np.arange(columns) * 37 % 11) - 5).astype(np.float32)[None]


def fitted(bits: int, group: int, dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    rows = rows_in(dtype)
    name = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[dtype]
    parts: tuple[np.ndarray, ...] = Encoder(MlxAffine(bits, group, name), importance(rows.shape[1])).encode(
        rows, 0
    )
    return parts


def main() -> None:
    hashes: dict[str, str] = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for mode in FLOAT_MODES:
            hashes[f"{mode} {name}"] = digest(*(p.tobytes() for p in oracles.mlx_float(rows_in(dtype), mode)))
        for bits in BITS:
            for group in GROUPS:
                parts = fitted(bits, group, dtype)
                hashes[f"fit {bits} {group} {name}"] = digest(*(part.tobytes() for part in parts))
    golden = {"versions": {"mlx": version("mlx")}, "hashes": hashes}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
