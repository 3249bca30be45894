"""MLX affine quantization: groups of 32, 64 or 128 values with a scale and a bias, 2 to 8 bits a value.

A value is ``scale * q + bias``. The scale is a step of the group's range, negative where the maximum is the
larger end, then changed a little so that the larger end is a whole number of steps from zero; that end is
the bias. Zero therefore has a code of its own. A row is one little-endian stream of bits, value ``i`` in bits
``i * b`` to ``(i + 1) * b``; MLX reads it as uint32.

Codes, scales and biases are those of ``mx.quantize(mode="affine")`` on a processor
(https://github.com/ml-explore/mlx/blob/main/mlx/backend/cpu/quantized.cpp), which fixes three details:
everything is float32, and the codes are found with the scale and bias from before they are rounded to
the rows' type; a step is at least 1e-7; halves round to even. What is different is that the range is found
on integers, and values are limited before they are rounded: the sum with 2**23 is the rounding.

Left out: groups that are not finite, or whose range float32 cannot hold. MLX writes a scale that decodes to
NaN; here such groups are counted and the caller decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qexport.codecs.jit import bits_of, compiled, float_of
from qexport.codecs.source_bits import SOURCE_DTYPES, source_bits, widen
from qexport.errors import UsageProblem

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)

_ZERO, _SMALLEST_STEP = np.float32(0), np.float32(1e-7)
_ROUNDER = np.float32(2.0**23)
_SIGN, _MAGNITUDE = np.int32(31), np.int32(0x7FFFFFFF)
# Keys of float32, as _key makes them; what is finite lies between the two.
_INFINITY, _MINUS_INFINITY = np.int32(0x7F800000), np.int32(-0x7F800001)


@dataclass(frozen=True)
class AffineRows:
    """Quantized rows.

    Attributes:
        packed: uint8 ``(n, columns * bits / 8)``; MLX's uint32 ``(n, columns * bits / 32)``, little-endian.
        scales: ``(n, columns / group)`` in the dtype of the rows.
        biases: like the scales.
        bad: how many groups are not finite, or too wide for float32.
    """

    packed: np.ndarray
    scales: torch.Tensor
    biases: torch.Tensor
    bad: int


def quantize(rows: torch.Tensor, bits: int, group: int) -> AffineRows:
    """Quantize ``(n, columns)`` rows in bfloat16, float16 or float32; columns a multiple of ``group``.

    Raises:
        UsageProblem: there is no such width or group, or the rows do not fit them.
    """
    source, shift = source_bits(rows)
    n, columns = source.shape
    check(columns, bits, group)
    packed = np.empty((n, columns * bits // 8), np.uint8)
    scales, biases = (np.empty((n, columns // group), np.float32) for _ in range(2))
    bad = int(_quantize(source, shift, bits, group, packed, scales, biases))
    # Rounded to nearest even, as MLX's casts are.
    return AffineRows(
        packed, torch.from_numpy(scales).to(rows.dtype), torch.from_numpy(biases).to(rows.dtype), bad
    )


def dequantize(packed: np.ndarray, scales: torch.Tensor, biases: torch.Tensor, bits: int) -> torch.Tensor:
    """``(n, columns)`` values in the dtype of the scales, product and sum each rounded to it, as MLX does.

    Args:
        packed: uint8 ``(n, columns * bits / 8)``.
        scales: ``(n, columns / group)`` in bfloat16, float16 or float32.
        biases: like the scales.
        bits: of one value.

    Raises:
        UsageProblem: the shapes or dtypes do not belong together.
    """
    n, groups = scales.shape
    columns = packed.shape[1] * 8 // max(1, bits)
    group = columns // max(1, groups)
    check(0, bits, group)
    fits = packed.shape == (n, groups * group * bits // 8) and packed.dtype == np.uint8
    if not fits or biases.shape != scales.shape or biases.dtype != scales.dtype:
        raise UsageProblem(f"{packed.dtype} {packed.shape} does not belong to scales {tuple(scales.shape)}")
    if scales.dtype not in SOURCE_DTYPES:
        raise UsageProblem(f"scales of {scales.dtype} are not MLX's")
    codes = np.empty((n, columns), np.uint8)
    _unpack(np.require(packed, requirements=["C", "A"]), bits, codes)
    steps = torch.from_numpy(codes).view(n, groups, -1).to(scales.dtype)
    return (steps * scales[:, :, None] + biases[:, :, None]).view(n, columns)


def check(columns: int, bits: int, group: int) -> None:
    """Raises UsageProblem where there is no such width or group, or rows of ``columns`` do not fit it."""
    if bits not in BITS or group not in GROUPS:
        raise UsageProblem(
            f"MLX has no affine quantization with {bits} bits in groups of {group}",
            hint=f"bits are {', '.join(map(str, BITS))}; groups are {', '.join(map(str, GROUPS))}",
        )
    if columns % group:
        raise UsageProblem(f"rows of {columns} values do not divide into groups of {group}")


@compiled
def _key(bits: np.uint32) -> np.int32:
    """Integers in the order of the numbers; its own inverse, but for the type."""
    signed = np.int32(bits)
    return np.int32(signed ^ ((signed >> _SIGN) & _MAGNITUDE))


@compiled
def _quantize(
    source: np.ndarray,
    shift: np.uint32,
    bits: int,
    group: int,
    packed: np.ndarray,
    scales: np.ndarray,
    biases: np.ndarray,
) -> int:
    top = np.float32((1 << bits) - 1)
    values, codes = np.empty(group, np.uint32), np.empty(group, np.uint8)
    bad = 0
    for row in range(source.shape[0]):
        for g in range(source.shape[1] // group):
            widen(source[row, g * group : (g + 1) * group], shift, values)
            low, high = np.int32(0x7FFFFFFF), np.int32(-0x7FFFFFFF)
            for i in range(group):
                key = _key(values[i])
                low, high = min(low, key), max(high, key)
            least = float_of(np.uint32(_key(np.uint32(low))))
            most = float_of(np.uint32(_key(np.uint32(high))))
            step = max(np.float32((most - least) / top), _SMALLEST_STEP)
            if high >= _INFINITY or low <= _MINUS_INFINITY or bits_of(step) >= np.uint32(0x7F800000):
                bad += 1

            if abs(least) > abs(most):
                edge = least
            else:
                edge, step = most, -step
            steps = np.float32(np.rint(np.float32(edge / step)))
            bias = _ZERO
            if steps != _ZERO:
                step = np.float32(edge / steps)
                bias = edge
            scales[row, g] = step
            biases[row, g] = bias

            for i in range(group):
                found = (float_of(values[i]) - bias) / step
                found = found if found > _ZERO else _ZERO
                found = found if found < top else top
                codes[i] = np.uint8(bits_of(found + _ROUNDER) & np.uint32(0xFF))
            pack(codes, bits, packed[row, g * group * bits // 8 : (g + 1) * group * bits // 8])
    return bad


@compiled
def pack(codes: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Eight codes at a time: they fill ``bits`` bytes."""
    width = np.uint64(bits)
    for eight in range(len(codes) // 8):
        word = np.uint64(0)
        for i in range(8):
            word |= np.uint64(codes[eight * 8 + i]) << np.uint64(np.uint64(i) * width)
        for i in range(bits):
            out[eight * bits + i] = np.uint8((word >> np.uint64(8 * i)) & np.uint64(0xFF))


@compiled
def _unpack(packed: np.ndarray, bits: int, out: np.ndarray) -> None:
    width, mask = np.uint64(bits), np.uint64((1 << bits) - 1)
    for row in range(len(packed)):
        for eight in range(out.shape[1] // 8):
            word = np.uint64(0)
            for i in range(bits):
                word |= np.uint64(packed[row, eight * bits + i]) << np.uint64(8 * i)
            for i in range(8):
                out[row, eight * 8 + i] = np.uint8((word >> np.uint64(np.uint64(i) * width)) & mask)
