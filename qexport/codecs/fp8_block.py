"""FP8 E4M3 in tiles with a scale each: Qwen's own FP8 files, and llm-compressor's FP8_BLOCK and FP8_DYNAMIC.

A tile is 128 by 128, of FP8_DYNAMIC a whole row.

A value is ``code * scale``. Two ways to get there (:class:`Style`):

``native``, as ``quant_method: fp8`` reads it: ``weight_scale_inv`` is bfloat16, and multiplied in spite of
its name. It is a tile's largest magnitude over 448, rounded to bfloat16 first, and a code is ``x / scale``
with that rounded scale in float32, rounded once to nearest even: dividing by what a reader multiplies with
leaves no error that a whole tile has in common. A tile of zeros has the scale 1, as in transformers. A tile
whose scale would be below float32's smallest normal number, 2**-126, gets that one: bfloat16 has no precision
left below, and some readers none at all.

``compressed-tensors``: what llm-compressor's ``model_free_ptq`` writes, to the byte
(https://github.com/vllm-project/compressed-tensors, ``calculate_qparams`` and ``quantize``). It works in the
model's dtype: scales have it, and the quotient is rounded to it before it is rounded to E4M3, which makes 3 %
of the codes of bfloat16 weights the other neighbour. A scale of zero becomes the dtype's epsilon.

Left out: tiles of 128 in matrices whose sides are not multiples of it, which readers disagree about; values
that are not finite, whose tiles are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch

from qexport.codecs.contract import FP8_TILE, Fp8Rows, Fp8Tiles, Known, Packed
from qexport.codecs.jit import compiled, float_of
from qexport.codecs.small_floats import AS_BFLOAT16, AS_IT_IS, E4M3_MAX, e4m3_bits, narrow, rounding_of
from qexport.codecs.source_bits import source_bits
from qexport.errors import UsageProblem

TILE = FP8_TILE

_ONE, _ZERO = np.float32(1), np.float32(0)
_SMALLEST = np.float32(2.0**-126)
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


class Style(StrEnum):
    """Whose scales and roundings."""

    NATIVE = "native"
    COMPRESSED_TENSORS = "compressed-tensors"


@dataclass(frozen=True)
class Quantized:
    """Quantized rows.

    Attributes:
        codes: E4M3 as uint8 ``(n, columns)``.
        scales: one for each tile, ``(down, across)``: in bfloat16, or in the rows' dtype for
            compressed-tensors.
        bad: how many tiles hold a NaN or infinity.
    """

    codes: np.ndarray
    scales: torch.Tensor
    bad: int


def quantize(
    rows: torch.Tensor, style: Style = Style.NATIVE, tile: tuple[int, int] = (TILE, TILE)
) -> Quantized:
    """Quantize ``(n, columns)`` rows in bfloat16, float16 or float32.

    Args:
        tile: rows and columns that share a scale.

    Raises:
        UsageProblem: the rows do not divide into tiles.
    """
    source, shift = source_bits(rows)
    (n, columns), (height, width) = source.shape, tile
    if n % height or columns % width:
        raise UsageProblem(f"a matrix of {n} by {columns} does not divide into tiles of {height} by {width}")
    codes = np.empty((n, columns), np.uint8)
    scales = np.empty((n // height, columns // width), np.float32)
    if style is Style.NATIVE:
        dtype, of_zeros, least = torch.bfloat16, _ONE, _SMALLEST
        scale_rounding, rounding = AS_BFLOAT16, AS_IT_IS
    else:
        dtype, of_zeros, least = rows.dtype, np.float32(torch.finfo(rows.dtype).eps), _ZERO
        scale_rounding = rounding = rounding_of(rows.dtype)
    how = (scale_rounding, rounding, of_zeros, least, height, width)
    bad = int(_quantize(source, shift, *how, codes, scales))
    return Quantized(codes, torch.from_numpy(scales).to(dtype), bad)


def encode(stored: Fp8Tiles, rows: torch.Tensor, known: Known) -> Packed:
    """Codes, and scales as bytes ``(n / 128, columns / 128 * size)``."""
    return _packed(quantize(rows, Style(stored.style)))


def encode_rows(stored: Fp8Rows, rows: torch.Tensor, known: Known) -> Packed:
    """Codes, and scales as bytes ``(n, size)``."""
    return _packed(quantize(rows, Style.COMPRESSED_TENSORS, (1, rows.shape[1])))


def _packed(made: Quantized) -> Packed:
    return Packed((made.codes, made.scales.view(torch.uint8).numpy()), made.bad)


@compiled
def _scale(top: np.uint32, rounding: np.uint32, of_zeros: np.float32, least: np.float32) -> np.float32:
    """A tile's scale from the float32 bits of its largest magnitude."""
    scale = max(narrow(float_of(top) / E4M3_MAX, rounding), least)
    return of_zeros if top == np.uint32(0) or scale == _ZERO else scale


@compiled
def _quantize(
    source: np.ndarray,
    shift: np.uint32,
    scale_rounding: np.uint32,
    rounding: np.uint32,
    of_zeros: np.float32,
    least: np.float32,
    height: int,
    width: int,
    codes: np.ndarray,
    scales: np.ndarray,
) -> int:
    bad = 0
    for down in range(scales.shape[0]):
        for across in range(scales.shape[1]):
            left, right = across * width, (across + 1) * width
            top = np.uint32(0)
            for row in range(down * height, (down + 1) * height):
                values = source[row, left:right]
                for i in range(width):
                    top = max(top, np.uint32((np.uint32(values[i]) << shift) & _MAGNITUDE))
            bad += int(top >= _INFINITY)
            divisor = _scale(top, scale_rounding, of_zeros, least)
            scales[down, across] = divisor
            for row in range(down * height, (down + 1) * height):
                # Slices in one piece, so that the compiler works on many values at once.
                values, found = source[row, left:right], codes[row, left:right]
                for i in range(width):
                    bits = np.uint32(np.uint32(values[i]) << shift)
                    # Beyond 448 by the rounding of the scale, and far beyond where float16 has few bits left.
                    level = narrow(float_of(np.uint32(bits & _MAGNITUDE)) / divisor, rounding)
                    sign = np.uint8((bits >> np.uint32(24)) & np.uint32(0x80))
                    found[i] = np.uint8(e4m3_bits(min(level, E4M3_MAX)) | sign)
    return bad
