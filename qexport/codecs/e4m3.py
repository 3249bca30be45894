"""FP8 E4M3 in a register: four bits of exponent, three of mantissa, no infinity, 448 the largest number.

Numbers from 2**-6 on have eight steps per power of two; below it the step is 2**-9. The rounding is to
nearest even, as in torch's ``float8_e4m3fn``. Left out: what lies beyond 464, where the number after 448
would be nearer if there were one. torch makes NaN of it; a caller has none.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import bits_of, compiled, float_of

E4M3_MAX = np.float32(448)

_NORMAL = np.uint32(0x3C800000)  # 2**-6
_REBIAS = np.uint32((127 - 7) << 23)
# Adding it leaves a float32 whose last bit is worth 2**-9: the processor does the rounding.
_ALIGN, _ALIGN_BITS = np.float32(2.0**14), np.uint32(0x46800000)
_SCALE = np.float32(2.0**120)


@compiled
def e4m3_bits(value: np.float32) -> np.uint8:
    """The byte of a float32 from 0 to 464."""
    bits = bits_of(value)
    rebased = np.uint32(bits - _REBIAS)
    normal = np.uint32(rebased + np.uint32(0x7FFFF) + ((rebased >> np.uint32(20)) & np.uint32(1)))
    small = np.uint32(bits_of(value + _ALIGN) - _ALIGN_BITS)
    return np.uint8(small if bits < _NORMAL else normal >> np.uint32(20))


@compiled
def e4m3_value(byte: np.uint8) -> np.float32:
    """The float32 of a byte without a sign, below 0x7F."""
    value: np.float32 = float_of(np.uint32(byte) << np.uint32(20)) * _SCALE
    return value
