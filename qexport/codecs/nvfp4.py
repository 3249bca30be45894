"""NVFP4: 16 values of 4 bits (E2M1) share an E4M3 scale, and a group of matrices a float32 global scale.

A value is ``level * scale * global_scale`` with a level of 0, 0.5, 1, 1.5, 2, 3, 4 or 6 and a sign in bit 3;
the even column lies in the low four bits of a byte. A block's largest magnitude maps to 6, and the global
scale, ``amax / (6 * 448)``, maps the largest of those to 448. ModelOpt stores the global scale as it is
(``weight_scale_2``), compressed-tensors its inverse (``weight_global_scale``). Matrices that a runtime fuses
need the same one, so it is given: take the largest magnitude of all of them.

The bytes are those of ModelOpt's ``NVFP4QTensor`` without a static calibration
(https://github.com/NVIDIA/TensorRT-Model-Optimizer): a scale of zero becomes 1, others are limited to 2**-9
to 448; ``scale * global_scale`` is rounded to float32 before it divides; levels round to nearest, ties to the
even code; a negative zero loses its sign, a small negative number keeps it. compressed-tensors works with
the inverse, rounds at other places and has another scale for blocks of zeros, so the two agree always only
where the global scale is a power of two, the rows are float32 and no scale is below 2**-9.

Left out: values that are not finite, whose blocks are counted. Values beyond ``2688 * global_scale`` are
cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qexport.codecs.e4m3 import E4M3_MAX, e4m3_bits, e4m3_value
from qexport.codecs.jit import bits_of, compiled, float_of
from qexport.codecs.source_bits import source_bits, widen
from qexport.errors import UsageProblem

__all__ = ["BLOCK", "LEVELS", "Nvfp4Rows", "dequantize", "global_scale", "quantize"]

BLOCK = 16
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

_ZERO, _ONE, _TOP_LEVEL = np.float32(0), np.float32(1), np.float32(6)
_SMALLEST_SCALE = np.float32(2.0**-9)
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
# E2M1 as e4m3.py does it: levels from 1 on have one bit of mantissa, below it the step is one half.
_REBIAS = np.uint32((127 - 1) << 23)
_ALIGN, _ALIGN_BITS = np.float32(2.0**22), np.uint32(0x4A800000)


@dataclass(frozen=True)
class Nvfp4Rows:
    """Quantized rows.

    Attributes:
        packed: uint8 ``(n, columns / 2)``.
        scales: E4M3 as uint8 ``(n, columns / 16)``.
        bad: how many blocks hold a NaN or infinity.
    """

    packed: np.ndarray
    scales: np.ndarray
    bad: int


def global_scale(amax: float) -> np.float32:
    """The scale that matrices share whose largest magnitude is ``amax``; compressed-tensors stores 1 over it.

    Where float32 has no normal number for it, the scale is 1, and such values become zeros.

    Raises:
        UsageProblem: ``amax`` is negative or not finite.
    """
    if not 0 <= amax < float("inf"):
        raise UsageProblem(f"{amax} is not the largest magnitude of a matrix")
    scale = np.float32(amax) / (_TOP_LEVEL * E4M3_MAX)
    return np.float32(scale) if scale >= np.finfo(np.float32).tiny else _ONE


def quantize(rows: torch.Tensor, shared: np.float32) -> Nvfp4Rows:
    """Quantize ``(n, columns)`` rows in bfloat16, float16 or float32; columns a multiple of 16.

    Args:
        rows: the values.
        shared: the result of :func:`global_scale`.

    Raises:
        UsageProblem: the rows do not divide into blocks, or the scale is no normal positive number.
    """
    source, shift = source_bits(rows)
    n, columns = source.shape
    if columns % BLOCK:
        raise UsageProblem(f"rows of {columns} values do not divide into blocks of {BLOCK}")
    if not np.finfo(np.float32).tiny <= np.float32(shared) < np.inf:
        raise UsageProblem(f"{shared} cannot be a global scale")
    packed = np.empty((n, columns // 2), np.uint8)
    scales = np.empty((n, columns // BLOCK), np.uint8)
    bad = int(_quantize(source, shift, np.float32(shared), packed, scales))
    return Nvfp4Rows(packed, scales, bad)


def dequantize(packed: np.ndarray, scales: np.ndarray, shared: np.float32) -> torch.Tensor:
    """Float32 ``(n, columns)``; the arguments are what :func:`quantize` gave and was given.

    Raises:
        UsageProblem: there is not one scale for each block.
    """
    n, blocks = scales.shape
    if packed.shape != (n, blocks * BLOCK // 2) or packed.dtype != np.uint8 or scales.dtype != np.uint8:
        raise UsageProblem(f"{packed.dtype} {packed.shape} does not belong to scales {scales.shape}")
    levels = np.array([*LEVELS, *(-level for level in LEVELS)], np.float32)
    values = np.empty((n, blocks, BLOCK), np.float32)
    pairs = packed.reshape(n, blocks, BLOCK // 2)
    values[..., 0::2], values[..., 1::2] = levels[pairs & 15], levels[pairs >> 4]
    steps = torch.from_numpy(scales).view(torch.float8_e4m3fn).to(torch.float32) * float(np.float32(shared))
    return torch.from_numpy(values).mul_(steps[..., None]).view(n, blocks * BLOCK)


@compiled
def _code(bits: np.uint32, divisor: np.float32) -> np.uint32:
    """The four bits of the float32 with these bits."""
    level = float_of(np.uint32(bits & _MAGNITUDE)) / divisor
    negative = np.uint32(8) if level > _ZERO else np.uint32(0)
    level = level if level < _TOP_LEVEL else _TOP_LEVEL
    rebased = np.uint32(bits_of(level) - _REBIAS)
    normal = np.uint32(rebased + np.uint32(0x1FFFFF) + ((rebased >> np.uint32(22)) & np.uint32(1)))
    small = np.uint32(bits_of(level + _ALIGN) - _ALIGN_BITS)
    code = np.uint32(small if level < _ONE else normal >> np.uint32(22))
    return np.uint32(code | (np.uint32(bits >> np.uint32(28)) & negative))


@compiled
def _quantize(
    source: np.ndarray, shift: np.uint32, shared: np.float32, packed: np.ndarray, scales: np.ndarray
) -> int:
    bad = 0
    unit = np.float32(_TOP_LEVEL * shared)
    columns, blocks = source.shape[1], source.shape[1] // BLOCK
    values, codes = np.empty(columns, np.uint32), np.empty(BLOCK, np.uint32)
    tops, divisors = np.empty(blocks, np.uint32), np.empty(blocks, np.float32)
    for row in range(source.shape[0]):
        # A step at a time for all blocks: they do not wait for each other's divisions.
        widen(source[row], shift, values)
        for block in range(blocks):
            top = np.uint32(0)
            for i in range(BLOCK):
                top = max(top, np.uint32(values[block * BLOCK + i] & _MAGNITUDE))
            tops[block] = top
        for block in range(blocks):
            bad += tops[block] >= _INFINITY
            scale = np.float32(float_of(tops[block]) / unit)
            scale = scale if scale != _ZERO else _ONE
            scale = scale if scale > _SMALLEST_SCALE else _SMALLEST_SCALE
            scale = scale if scale < E4M3_MAX else E4M3_MAX
            byte = e4m3_bits(scale)
            scales[row, block] = byte
            divisors[block] = e4m3_value(byte) * shared
        for block in range(blocks):
            for i in range(BLOCK):
                codes[i] = _code(values[block * BLOCK + i], divisors[block])
            for i in range(BLOCK // 2):
                pair = codes[2 * i] | codes[2 * i + 1] << np.uint32(4)
                packed[row, block * (BLOCK // 2) + i] = np.uint8(pair)
    return bad
