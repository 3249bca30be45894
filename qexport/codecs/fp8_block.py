"""FP8 E4M3 in tiles of 128 by 128 with a bfloat16 scale each: ``quant_method: fp8`` of Qwen's own files.

A value is ``code * scale``; files call the scale ``weight_scale_inv``, and it is multiplied. It is a tile's
largest magnitude over 448, rounded to bfloat16 first, and a code is ``x / scale`` with that rounded scale in
float32, rounded once to nearest even: dividing by what a reader multiplies with leaves no error that a
whole tile has in common. The scales are those of compressed-tensors' ``calculate_qparams`` on bfloat16, the
codes those of its ``quantize`` on float32 (https://github.com/vllm-project/compressed-tensors). On
bfloat16 rows that function rounds the quotient to bfloat16 before it rounds to E4M3, so some of its codes are
the other neighbour: 3 % of those of normal weights.

A tile of zeros has the scale 1, as in transformers (in compressed-tensors a small number). A tile whose
scale would be below float32's smallest normal number, 2**-126, gets that one: bfloat16 has no precision left
below, and some readers none at all.

Left out: matrices whose sides are not multiples of 128, which readers disagree about; values that are not
finite, whose tiles are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qexport.codecs.e4m3 import E4M3_MAX, e4m3_bits
from qexport.codecs.jit import bits_of, compiled, float_of
from qexport.codecs.source_bits import source_bits
from qexport.errors import UsageProblem

__all__ = ["TILE", "Fp8Rows", "dequantize", "quantize"]

TILE = 128

_ONE_BITS = np.uint32(0x3F800000)
_SMALLEST_BITS = np.uint32(0x00800000)
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


@dataclass(frozen=True)
class Fp8Rows:
    """Quantized rows.

    Attributes:
        codes: E4M3 as uint8 ``(n, columns)``.
        scales: bfloat16 ``(n / 128, columns / 128)``.
        bad: how many tiles hold a NaN or infinity.
    """

    codes: np.ndarray
    scales: torch.Tensor
    bad: int


def quantize(rows: torch.Tensor) -> Fp8Rows:
    """Quantize ``(n, columns)`` rows in bfloat16, float16 or float32; both sides multiples of 128.

    Raises:
        UsageProblem: the rows do not divide into tiles.
    """
    source, shift = source_bits(rows)
    n, columns = source.shape
    if n % TILE or columns % TILE:
        raise UsageProblem(f"a matrix of {n} by {columns} does not divide into tiles of {TILE} by {TILE}")
    codes = np.empty((n, columns), np.uint8)
    scales = np.empty((n // TILE, columns // TILE), np.uint16)
    bad = int(_quantize(source, shift, codes, scales))
    return Fp8Rows(codes, torch.from_numpy(scales).view(torch.bfloat16), bad)


def dequantize(codes: np.ndarray, scales: torch.Tensor) -> torch.Tensor:
    """Float32 ``(n, columns)``: ``codes``, uint8 of that shape, times ``scales``, float32 or bfloat16.

    Raises:
        UsageProblem: there is not one scale for each tile.
    """
    n, columns = codes.shape
    if (n, columns) != (scales.shape[0] * TILE, scales.shape[1] * TILE) or codes.dtype != np.uint8:
        raise UsageProblem(f"{codes.dtype} {codes.shape} does not belong to scales {tuple(scales.shape)}")
    values = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.float32)
    tiles = values.view(n // TILE, TILE, columns // TILE, TILE)
    return tiles.mul_(scales.to(torch.float32)[:, None, :, None]).view(n, columns)


@compiled
def _scale_bits(top: np.uint32) -> np.uint32:
    """float32 bits of a tile's scale, the lower half zero, from those of its largest magnitude."""
    if top == np.uint32(0):
        return _ONE_BITS
    exact = bits_of(float_of(top) / E4M3_MAX)
    rounded = np.uint32(exact + np.uint32(0x7FFF) + ((exact >> np.uint32(16)) & np.uint32(1)))
    return max(np.uint32(rounded & np.uint32(0xFFFF0000)), _SMALLEST_BITS)


@compiled
def _quantize(source: np.ndarray, shift: np.uint32, codes: np.ndarray, scales: np.ndarray) -> int:
    bad = 0
    for down in range(scales.shape[0]):
        for across in range(scales.shape[1]):
            tile = source[down * TILE : (down + 1) * TILE, across * TILE : (across + 1) * TILE]
            out = codes[down * TILE : (down + 1) * TILE, across * TILE : (across + 1) * TILE]
            top = np.uint32(0)
            for row in range(TILE):
                values = tile[row]
                for i in range(TILE):
                    top = max(top, np.uint32((np.uint32(values[i]) << shift) & _MAGNITUDE))
            if top >= _INFINITY:
                bad += 1
            scale = _scale_bits(top)
            scales[down, across] = np.uint16(scale >> np.uint32(16))
            divisor = float_of(scale)
            for row in range(TILE):
                values, found = tile[row], out[row]
                for i in range(TILE):
                    bits = np.uint32(np.uint32(values[i]) << shift)
                    # At most 448 * (1 + 2**-8), by the rounding of the scale: its code is that of 448.
                    level = float_of(np.uint32(bits & _MAGNITUDE)) / divisor
                    sign = np.uint8((bits >> np.uint32(24)) & np.uint32(0x80))
                    found[i] = np.uint8(e4m3_bits(level) | sign)
    return bad
