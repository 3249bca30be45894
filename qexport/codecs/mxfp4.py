"""MXFP4: 32 values share a power of two, each is a sign and 0, 0.5, 1, 1.5, 2, 3, 4 or 6.

A block is the power's exponent (E8M0: a byte, less 127), then 16 bytes: byte ``i`` holds the code of value
``i`` and, above it, that of value ``i + 16``. The power is that of the block's largest magnitude, two lower:
its values become 4 to 8, and what is beyond 6 is cut off. Importance is not used.

The bytes are those of ggml's ``quantize_row_mxfp4_ref``
(https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c), which fixes the details: the
exponent is the floor of a float32 logarithm; a value in the middle of two levels takes the smaller; what
becomes zero has no sign.

Left out: values that are not finite, which are counted. A block of magnitudes below 2**-125 becomes
zeros, with an exponent that wraps around, as ggml's does on x86.
"""

from __future__ import annotations

import math

import numpy as np

from qexport.codecs.decode_blocks import E2M1_TWICE, E8M0_HALVES
from qexport.codecs.jit import compiled, float_of
from qexport.codecs.source_bits import widen

_SIZE, _BYTES = 32, 17
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


def encode(
    type_name: str, halves: np.ndarray, words: np.ndarray, importance: np.ndarray, out: np.ndarray
) -> int:
    """Fill ``out``; the contract is in :mod:`qexport.codecs.native`. Importance is not used."""
    return int(_encode(halves, words, out))


@compiled
def _encode(halves: np.ndarray, words: np.ndarray, out: np.ndarray) -> int:
    bad, columns = 0, halves.shape[1]
    bits = np.empty(columns, np.uint32)
    for row in range(len(out)):
        if len(halves):
            widen(halves[row], np.uint32(16), bits)
        else:
            widen(words[row], np.uint32(0), bits)
        for block in range(columns // _SIZE):
            values = bits[block * _SIZE : (block + 1) * _SIZE]
            packed = out[row, block * _BYTES : (block + 1) * _BYTES]
            top = np.uint32(0)
            for i in range(_SIZE):
                top = max(top, np.uint32(values[i] & _MAGNITUDE))
            bad += 1 if top >= _INFINITY else 0
            packed[0] = _exponent(float_of(top))
            half = E8M0_HALVES[packed[0]]
            for i in range(_SIZE // 2):
                packed[1 + i] = _code(values[i], half) | _code(values[i + _SIZE // 2], half) << np.uint8(4)
    return bad


@compiled
def _exponent(top: np.float32) -> np.uint8:
    if not np.float32(0) < top < np.float32(np.inf):
        return np.uint8(0)
    power = math.floor(np.float32(math.log2(np.float64(top))))
    return np.uint8((power - 2 + 127) & 0xFF)


@compiled
def _code(bits: np.uint32, half: np.float32) -> np.uint8:
    """The nearest level, the smaller of two that are as near."""
    magnitude = float_of(np.uint32(bits & _MAGNITUDE))
    best, least = 0, magnitude
    for level in range(1, 8):
        error = abs(E2M1_TWICE[level] * half - magnitude)
        if error < least:
            best, least = level, error
    if best and bits > _MAGNITUDE:
        best |= 8
    return np.uint8(best)
