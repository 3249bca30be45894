"""MLX's float modes: mxfp4, mxfp8 and nvfp4, groups of 32 or 16 small floats that share a scale of one byte.

======  =====  ==============  ====================
mode    group  value           scale
======  =====  ==============  ====================
mxfp4   32     E2M1, 4 bits    E8M0, a power of two
mxfp8   32     E4M3, 8 bits    E8M0
nvfp4   16     E2M1, 4 bits    E4M3
======  =====  ==============  ====================

There are no biases and no global scale; even columns of 4 bits lie in the low half of a byte. The bytes are
those of ``mx.quantize`` on a processor (``fp_quantize`` in
https://github.com/ml-explore/mlx/blob/846d176227a0ac13d2667e58d2bb68b322109ab0/mlx/ops.cpp), a chain of array
operations in the dtype of the rows: the scale, the largest magnitude over 6 or 448, is rounded to it, and so
is a value over an E4M3 scale. A power of two is the next one up, so that nothing is cut off
(https://github.com/ml-explore/mlx/pull/4353; versions before it took the nearer one). The level nearest to a
value wins, the smaller one when two are as near, and zero has no sign; E4M3 rounds to nearest even and keeps
the sign of zero. Where an E4M3 scale is zero, so are its values.

Left out: groups that are not finite or too large for an E4M3 scale, which are counted; powers of two below
2**-126, which become that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from qexport.codecs.jit import bits_of, compiled, float_of
from qexport.codecs.small_floats import E4M3_MAX, e4m3_bits, e4m3_value, narrow, rounding_of
from qexport.codecs.source_bits import source_bits, widen
from qexport.errors import UsageProblem


@dataclass(frozen=True)
class FloatMode:
    """A mode: values in a group, bits of a value, the largest value, whether the scale is a power of two."""

    group: int
    bits: int
    top: float
    power_of_two: bool


FLOAT_MODES: Mapping[str, FloatMode] = {
    "mxfp4": FloatMode(32, 4, 6.0, power_of_two=True),
    "mxfp8": FloatMode(32, 8, 448.0, power_of_two=True),
    "nvfp4": FloatMode(16, 4, 6.0, power_of_two=False),
}

_ZERO = np.float32(0)
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


@dataclass(frozen=True)
class FloatRows:
    """Quantized rows.

    Attributes:
        packed: uint8 ``(n, columns * bits / 8)``; MLX's uint32, little-endian.
        scales: uint8 ``(n, columns / group)``.
        bad: how many groups are not finite, or too large for their scale.
    """

    packed: np.ndarray
    scales: np.ndarray
    bad: int


def quantize(rows: torch.Tensor, mode: str) -> FloatRows:
    """Quantize ``(n, columns)`` rows in bfloat16, float16 or float32; columns a multiple of the group.

    Raises:
        UsageProblem: there is no such mode, or the rows do not fit it.
    """
    known = _mode(mode)
    source, shift = source_bits(rows)
    n, columns = source.shape
    if columns % known.group:
        raise UsageProblem(f"rows of {columns} values do not divide into groups of {known.group}")
    packed = np.empty((n, columns * known.bits // 8), np.uint8)
    scales = np.empty((n, columns // known.group), np.uint8)
    lost, top = rounding_of(rows.dtype), np.float32(known.top)
    bad = _quantize(source, shift, lost, known.group, top, known.power_of_two, packed, scales)
    return FloatRows(packed, scales, int(bad))


def _mode(name: str) -> FloatMode:
    if name not in FLOAT_MODES:
        raise UsageProblem(f"MLX has no mode {name!r}", hint=f"its float modes are {', '.join(FLOAT_MODES)}")
    return FLOAT_MODES[name]


@compiled
def _exponent(step: np.float32) -> np.uint32:
    """The exponent of the power of two that is not below ``step``, as float32 and E8M0 store it."""
    if step == _ZERO:
        return np.uint32(127)
    bits = bits_of(step)
    return max(np.uint32(1), np.uint32((bits + np.uint32(0x7FFFFF)) >> np.uint32(23)))


@compiled
def _quantize(
    source: np.ndarray,
    shift: np.uint32,
    lost: np.uint32,
    group: int,
    top: np.float32,
    power_of_two: bool,
    packed: np.ndarray,
    scales: np.ndarray,
) -> int:
    bad = 0
    values, codes = np.empty(group, np.uint32), np.empty(group, np.uint32)
    eight = top > np.float32(6)
    width = group if eight else group // 2
    for row in range(source.shape[0]):
        for g in range(source.shape[1] // group):
            widen(source[row, g * group : (g + 1) * group], shift, values)
            most = np.uint32(0)
            for i in range(group):
                most = max(most, np.uint32(values[i] & _MAGNITUDE))
            bad += int(most >= _INFINITY)
            step = narrow(np.float32(float_of(most) / top), lost)
            out = packed[row, g * width : (g + 1) * width]
            if power_of_two:
                exponent = _exponent(step)
                scales[row, g] = np.uint8(exponent)
                factor = float_of(np.uint32((np.uint32(254) - exponent) << np.uint32(23)))  # exact products
                if eight:
                    for i in range(group):
                        size = float_of(np.uint32(values[i] & _MAGNITUDE)) * factor
                        size = size if size < E4M3_MAX else E4M3_MAX
                        sign = np.uint8((values[i] >> np.uint32(24)) & np.uint32(0x80))
                        out[i] = e4m3_bits(size) | sign
                    continue
                for i in range(group):
                    codes[i] = _level(float_of(np.uint32(values[i] & _MAGNITUDE)) * factor, values[i])
            else:
                bad += int(step > E4M3_MAX and most < _INFINITY)
                byte = e4m3_bits(step if step < E4M3_MAX else E4M3_MAX)
                scales[row, g] = byte
                divisor = e4m3_value(byte) if byte else np.float32(np.inf)
                for i in range(group):
                    size = narrow(float_of(np.uint32(values[i] & _MAGNITUDE)) / divisor, lost)
                    codes[i] = _level(size, values[i])
            for i in range(group // 2):
                out[i] = np.uint8(codes[2 * i] | codes[2 * i + 1] << np.uint32(4))
    return bad


@compiled
def _level(size: np.float32, bits: np.uint32) -> np.uint32:
    """The four bits of a magnitude, with the sign of the float32 that has ``bits``."""
    code = np.uint32(size > np.float32(0.25)) + np.uint32(size > np.float32(0.75))
    code += np.uint32(size > np.float32(1.25)) + np.uint32(size > np.float32(1.75))
    code += np.uint32(size > np.float32(2.5)) + np.uint32(size > np.float32(3.5))
    code += np.uint32(size > np.float32(5))
    sign = np.uint32(bits >> np.uint32(28)) & np.uint32(8)
    return np.uint32(code | (sign if code else np.uint32(0)))
