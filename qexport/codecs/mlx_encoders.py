"""MLX's stored types encoded: streams of packed weights, scales and, if any, biases.

Values are rounded to the dtype of the model first, as mlx-lm casts before it quantizes; scales and biases
come in that dtype. Packed words are MLX's uint32, little-endian, so their bytes are the stream.
"""

from __future__ import annotations

import numpy as np
import torch

from qexport.checkpoint.tensors import torch_dtype
from qexport.codecs import mlx_affine, mlx_float
from qexport.codecs.contract import Known, MlxAffine, MlxFloat, Packed, chunk_rows
from qexport.codecs.mlx_weighted import fit_into
from qexport.codecs.native import halves_and_words
from qexport.codecs.small_floats import rounding_of

_EVEN = 32  # rows that the weighted fit works on at once


def encode_affine(stored: MlxAffine, rows: torch.Tensor, known: Known) -> Packed:
    """Packed weights, scales, biases."""
    rows = rows.to(torch_dtype(stored.dtype))
    if known.importance is None:
        made = mlx_affine.quantize(rows, stored.bits, stored.group)
    else:
        made = _fitted(rows, known.importance, stored)
    return Packed((made.packed, bytes_of(made.scales), bytes_of(made.biases)), made.bad)


def encode_float(stored: MlxFloat, rows: torch.Tensor, known: Known) -> Packed:
    """Packed weights, scales."""
    made = mlx_float.quantize(rows.to(torch_dtype(stored.dtype)), stored.name)
    return Packed((made.packed, made.scales), made.bad)


def _fitted(rows: torch.Tensor, importance: np.ndarray, stored: MlxAffine) -> mlx_affine.AffineRows:
    """Fitted to importance."""
    n, columns = rows.shape
    bits, group = stored.bits, stored.group
    mlx_affine.check(columns, bits, group)
    weights = proportions(importance)
    packed = np.empty((n, columns * bits // 8), np.uint8)
    scales, biases = (np.empty((n, columns // group), np.float32) for _ in range(2))
    dropped, bad = int(rounding_of(rows.dtype)), 0
    step = chunk_rows(rows, _EVEN) if rows.dtype == torch.float16 else max(1, n)
    for start in range(0, n, step):
        span = slice(start, start + step)
        part = rows[span] if rows.dtype == torch.bfloat16 else rows[span].to(torch.float32)
        halves, words = halves_and_words(part)
        bad += fit_into(
            halves, words, weights, bits, group, dropped, packed[span], scales[span], biases[span]
        )
    narrow = [torch.from_numpy(table).to(rows.dtype) for table in (scales, biases)]
    return mlx_affine.AffineRows(packed, narrow[0], narrow[1], bad)


def proportions(importance: np.ndarray) -> np.ndarray:
    """Scaled so that its mean is 1: only proportions matter."""
    mean = float(importance.mean(dtype=np.float64))
    return importance / np.float32(mean) if mean > 0 else np.ones_like(importance)


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    # A single number passes for contiguous whatever its strides, and has no bytes then.
    raw: np.ndarray = tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy()
    return raw
