"""What ggml's encoders do to numbers, in lanes: rounding as ggml rounds, float16 scales.

ggml rounds by adding 1.5 * 2**23, which leaves the rounded number (nearest, ties to even) in the low bits of
the sum, and reads 23 of them back. That is exact while the magnitude is below 2**22. Beyond, the bits wrap
around, and a search that has run into a degenerate sub-block goes on with what they give; so :func:`nearest`
reads the same bits. Where ggml limits a quotient before it rounds, that cannot happen (:func:`within`).
https://github.com/ggml-org/llama.cpp/blob/01243c587feceaa5d6a6c2305535ef2f549c48b8/ggml/src/ggml-quants.c
(nearest_int)
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import compiled
from qexport.codecs.lanes import Lanes, float_lanes, raw_bits, select

_MAGIC = np.float32(1.5 * 2**23)
_MANTISSA = 0x7FFFFF
_ORIGIN = 0x400000  # the mantissa of _MAGIC: where zero lies


@compiled
def nearest(value: Lanes) -> Lanes:
    """The nearest whole number as int32."""
    return (raw_bits(value + _MAGIC) & _MANTISSA) - _ORIGIN


@compiled
def code(value: Lanes, top: int) -> Lanes:
    """The nearest whole number, then limited to 0 and ``top``, as int32."""
    whole = nearest(value)
    whole = select(whole < 0, 0, whole)
    return select(whole > top, top, whole)


@compiled
def signed_code(value: Lanes, top: int) -> Lanes:
    """The nearest whole number, then limited to ``-top`` and ``top - 1``, as int32."""
    whole = nearest(value)
    whole = select(whole < -top, -top, whole)
    return select(whole > top - 1, top - 1, whole)


@compiled
def within(value: Lanes, top: int) -> Lanes:
    """``value`` limited to 0 and ``top``; 0 for a NaN."""
    value = select(value > 0, value, 0)
    return select(value < top, value, top)


@compiled
def rounded(value: Lanes) -> Lanes:
    """The nearest whole number as float32, for magnitudes below 2**22."""
    return (value + _MAGIC) - _MAGIC


@compiled
def half_bits(value: Lanes) -> Lanes:
    """The bits of float32 rounded to float16, nearest even; a NaN gives those of infinity."""
    bits = raw_bits(value)
    sign, bits = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    # Subnormal in float16: adding 0.5 rounds at its last bit, 2**-24.
    small = raw_bits(float_lanes(bits) + np.float32(0.5)) - 0x3F000000
    # Otherwise the exponent's bias goes from 127 to 15 and 13 bits of mantissa are rounded off; a carry into
    # the exponent is right, up to infinity.
    normal = (bits - 0x38000000 + 0x0FFF + ((bits >> 13) & 1)) >> 13
    rounded = select(bits < 0x38800000, small, normal)
    return select(bits < 0x47800000, rounded, 0x7C00) | sign


@compiled
def from_half_bits(bits: Lanes) -> Lanes:
    """The float32 of a finite float16."""
    return float_lanes((bits & 0x8000) << 16 | (bits & 0x7FFF) << 13) * np.float32(2.0**112)
