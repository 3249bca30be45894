"""Small floats in a register: E2M1 of 4 bits, E4M3 of 8, and what bfloat16 and float16 keep of a float32.

E2M1 has 0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign: one bit of mantissa from 1 on, steps of one half below. The
rounding is to nearest, ties to the even code: 0.25 becomes 0, 2.5 becomes 2, 5 becomes 4.

E4M3 has four bits of exponent, three of mantissa, no infinity, 448 the largest number: eight steps per power
of two from 2**-6 on, steps of 2**-9 below. The rounding is to nearest even, as in torch's ``float8_e4m3fn``.
Left out: what lies beyond 464, where the number after 448 would be nearer if there were one. torch makes NaN
of it; a caller has none.

Libraries that divide in the model's dtype round the quotient to it before they round it to eight bits; equal
bytes need that first rounding (:func:`narrow`), to nearest even, as torch rounds. Left out: numbers of 65520
and more, which are infinite in float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qexport.codecs.jit import bits_of, compiled, float_of

if TYPE_CHECKING:
    import torch


TOP_LEVEL = np.float32(6)
E4M3_MAX = np.float32(448)
# How many bits of float32's mantissa each dtype has not.
AS_IT_IS = np.uint32(0)
AS_BFLOAT16 = np.uint32(16)
AS_FLOAT16 = np.uint32(13)

_ONE, _TWO, _FOUR = np.float32(1), np.float32(2), np.float32(4)
_E2M1_REBIAS = np.uint32((127 - 1) << 23)
# Adding one of these leaves a float32 whose last bit is worth one half, one or two: the processor rounds.
_HALVES, _ONES, _TWOS = np.float32(2.0**22), np.float32(2.0**23), np.float32(2.0**24)
_HALVES_BITS = np.uint32(0x4A800000)
_NORMAL = np.uint32(0x3C800000)  # 2**-6
_E4M3_REBIAS = np.uint32((127 - 7) << 23)
# Adding it leaves a float32 whose last bit is worth 2**-9: the processor does the rounding.
_ALIGN, _ALIGN_BITS = np.float32(2.0**14), np.uint32(0x46800000)
_SCALE = np.float32(2.0**120)
_BIT = np.uint32(1)
_SMALLEST_NORMAL = np.float32(2.0**-14)
# Below float16's normal numbers the step is 2**-24: that of float32 from one half on.
_HALF = np.float32(0.5)


@compiled
def e2m1_code(level: np.float32) -> np.uint32:
    """The three bits of a number of 0 or more; beyond 6 those of 6."""
    level = level if level < TOP_LEVEL else TOP_LEVEL
    rebased = np.uint32(bits_of(level) - _E2M1_REBIAS)
    normal = np.uint32(rebased + np.uint32(0x1FFFFF) + ((rebased >> np.uint32(22)) & np.uint32(1)))
    small = np.uint32(bits_of(level + _HALVES) - _HALVES_BITS)
    return np.uint32(small if level < _ONE else normal >> np.uint32(22))


@compiled
def e2m1_nearest(level: np.float32) -> np.float32:
    """The level that :func:`e2m1_code` stands for."""
    level = level if level < TOP_LEVEL else TOP_LEVEL
    align = _HALVES if level < _TWO else (_ONES if level < _FOUR else _TWOS)
    nearest: np.float32 = np.float32(level + align) - align
    return nearest


@compiled
def e4m3_bits(value: np.float32) -> np.uint8:
    """The byte of a float32 from 0 to 464."""
    bits = bits_of(value)
    rebased = np.uint32(bits - _E4M3_REBIAS)
    normal = np.uint32(rebased + np.uint32(0x7FFFF) + ((rebased >> np.uint32(20)) & np.uint32(1)))
    small = np.uint32(bits_of(value + _ALIGN) - _ALIGN_BITS)
    return np.uint8(small if bits < _NORMAL else normal >> np.uint32(20))


@compiled
def e4m3_value(byte: np.uint8) -> np.float32:
    """The float32 of a byte without a sign, below 0x7F."""
    value: np.float32 = float_of(np.uint32(byte) << np.uint32(20)) * _SCALE
    return value


def rounding_of(dtype: torch.dtype) -> np.uint32:
    """The rounding that arithmetic in ``dtype`` does."""
    import torch

    return {torch.bfloat16: AS_BFLOAT16, torch.float16: AS_FLOAT16}.get(dtype, AS_IT_IS)


@compiled
def narrow(value: np.float32, lost: np.uint32) -> np.float32:
    """``value``, not negative and finite, with ``lost`` bits of mantissa rounded away."""
    half = np.uint32((_BIT << lost) >> _BIT)
    bits = bits_of(value)
    even = np.uint32((bits >> lost) & (half != 0))
    rounded: np.float32 = float_of(np.uint32((bits + np.uint32(half - (half != 0)) + even) >> lost << lost))
    if lost == AS_FLOAT16 and value < _SMALLEST_NORMAL:
        rounded = np.float32(value + _HALF) - _HALF
    return rounded
