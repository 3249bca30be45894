"""Packed blocks of 32 values back to float32: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, MXFP4; NVFP4 of 64.

What a block holds is described where it is encoded (:mod:`qexport.codecs.q8_0`, :mod:`qexport.codecs.q4_0`,
:mod:`qexport.codecs.q4_1`, :mod:`qexport.codecs.mxfp4`, :mod:`qexport.codecs.nvfp4_blocks`); IQ4_NL is Q4_0
with a table of values. A kernel takes uint8 ``(blocks, block bytes)`` and fills float32 ``(blocks, 32)``, of
NVFP4 ``(blocks, 64)``. Every bit is ggml's, as the arithmetic is that
of its ``dequantize_row_*`` functions:
https://github.com/ggml-org/llama.cpp/blob/01243c587feceaa5d6a6c2305535ef2f549c48b8/ggml/src/ggml-quants.c

Levels are cast to a byte before they become float32: numba's whole numbers are 64 bits wide, and a processor
converts few of those at a time.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import bits_of, compiled, float_of

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""What the levels of IQ4_NL and IQ4_XS stand for: kvalues_iq4nl in ggml-common.h."""

E2M1_TWICE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice what the codes of MXFP4 and NVFP4 stand for: kvalues_mxfp4 in ggml-common.h."""

E8M0_HALVES = np.ldexp(1.0, np.arange(256) - 128).astype(np.float32)
"""Half of what a byte of E8M0 stands for."""

E4M3_HALVES = np.array(
    [
        np.ldexp(code if code < 8 else 8 + code % 8, max(code // 8, 1) - 11)
        for code in (byte & 0x7F for byte in range(256))
    ],
    np.float32,
)
"""Half of what a byte of E4M3 stands for without its sign; that which is no number is 0 to ggml."""
E4M3_HALVES[0x7F] = 0

_REBIAS = np.float32(2.0**112)  # from the exponents of float16 to those of float32; right for subnormals, too
_SPECIAL = np.uint32(0x7F800000)


@compiled
def float16_at(block: np.ndarray, at: int) -> np.float32:
    """The float16 in bytes ``at`` and ``at + 1``, as float32."""
    bits = np.uint32(block[at]) | np.uint32(block[at + 1]) << np.uint32(8)
    magnitude = (bits & np.uint32(0x7FFF)) << np.uint32(13)
    if magnitude >= np.uint32(0x0F800000):  # infinity and NaN
        magnitude |= _SPECIAL
    else:
        magnitude = bits_of(float_of(magnitude) * _REBIAS)
    value: np.float32 = float_of(np.uint32(magnitude | (bits & np.uint32(0x8000)) << np.uint32(16)))
    return value


@compiled
def decode_q8_0(packed: np.ndarray, out: np.ndarray) -> None:
    for b in range(len(packed)):
        block, values = packed[b], out[b]
        d, levels = float16_at(block, 0), block[2:34]
        for i in range(32):
            values[i] = np.float32(np.int8(levels[i])) * d


@compiled
def decode_q4(packed: np.ndarray, out: np.ndarray) -> None:
    """Q4_0 (18 bytes, levels from -8) and Q4_1 (20 bytes, levels from 0 and a minimum)."""
    if packed.shape[1] == 18:
        for b in range(len(packed)):
            block, values = packed[b], out[b]
            d, levels = float16_at(block, 0), block[2:18]
            for i in range(16):
                values[i] = np.float32(np.int8((levels[i] & 15) - 8)) * d
                values[16 + i] = np.float32(np.int8((levels[i] >> 4) - 8)) * d
    else:
        for b in range(len(packed)):
            block, values = packed[b], out[b]
            d, low = float16_at(block, 0), float16_at(block, 2)
            for i in range(16):
                values[i] = np.float32(np.uint8(block[4 + i] & 15)) * d + low
                values[16 + i] = np.float32(np.uint8(block[4 + i] >> 4)) * d + low


@compiled
def decode_q5(packed: np.ndarray, out: np.ndarray) -> None:
    """Q5_0 (22 bytes, levels from -16) and Q5_1 (24 bytes, levels from 0 and a minimum)."""
    base = packed.shape[1] - 20  # where the fifth bits begin
    for b in range(len(packed)):
        block, values = packed[b], out[b]
        d = float16_at(block, 0)
        fifth = np.uint32(0)
        for i in range(4):
            fifth |= np.uint32(block[base + i]) << np.uint32(8 * i)
        levels = block[base + 4 :]
        if base == 2:
            for i in range(16):
                low = (np.uint32(levels[i]) & np.uint32(15)) | (
                    fifth >> np.uint32(i) & np.uint32(1)
                ) << np.uint32(4)
                high = np.uint32(levels[i] >> 4) | (fifth >> np.uint32(16 + i) & np.uint32(1)) << np.uint32(4)
                values[i] = np.float32(np.int8(low) - np.int8(16)) * d
                values[16 + i] = np.float32(np.int8(high) - np.int8(16)) * d
        else:
            lowest = float16_at(block, 2)
            for i in range(16):
                low = (np.uint32(levels[i]) & np.uint32(15)) | (
                    fifth >> np.uint32(i) & np.uint32(1)
                ) << np.uint32(4)
                high = np.uint32(levels[i] >> 4) | (fifth >> np.uint32(16 + i) & np.uint32(1)) << np.uint32(4)
                values[i] = np.float32(np.uint8(low)) * d + lowest
                values[16 + i] = np.float32(np.uint8(high)) * d + lowest


@compiled
def decode_iq4_nl(packed: np.ndarray, out: np.ndarray) -> None:
    for b in range(len(packed)):
        block, values = packed[b], out[b]
        d = float16_at(block, 0)
        for i in range(16):
            values[i] = d * IQ4_VALUES[block[2 + i] & 15]
            values[16 + i] = d * IQ4_VALUES[block[2 + i] >> 4]


@compiled
def decode_mxfp4(packed: np.ndarray, out: np.ndarray) -> None:
    for b in range(len(packed)):
        block, values = packed[b], out[b]
        d = E8M0_HALVES[block[0]]
        for i in range(16):
            values[i] = E2M1_TWICE[block[1 + i] & 15] * d
            values[16 + i] = E2M1_TWICE[block[1 + i] >> 4] * d


@compiled
def decode_nvfp4(packed: np.ndarray, out: np.ndarray) -> None:
    """Without the scale of the matrix."""
    for b in range(len(packed)):
        block, values = packed[b], out[b]
        for part in range(4):
            d = E4M3_HALVES[block[part]]
            for i in range(8):
                pair = block[4 + 8 * part + i]
                values[16 * part + i] = E2M1_TWICE[pair & 15] * d
                values[16 * part + 8 + i] = E2M1_TWICE[pair >> 4] * d
