"""Packed super-blocks of 256 values back to float32: Q2_K to Q6_K and IQ4_XS.

What a block holds is described where it is encoded (:mod:`qexport.codecs.q2_k`, :mod:`qexport.codecs.q3_k`,
:mod:`qexport.codecs.q4_k`, :mod:`qexport.codecs.q6_k`). A kernel takes uint8 ``(blocks, block bytes)`` and
fills float32 ``(blocks, 256)``. Every bit is ggml's, as the order of operations is that of its
``dequantize_row_*`` functions: the scale of a sub-block is multiplied out first, a minimum subtracted last.
https://github.com/ggml-org/llama.cpp/blob/01243c587feceaa5d6a6c2305535ef2f549c48b8/ggml/src/ggml-quants.c

Where 16 values share a scale, 32 are still decoded in one loop, each with its own copy of the scale: loops of
16 are unrolled by the compiler, and then no longer vectors.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.decode_blocks import IQ4_VALUES, float16_at
from qexport.codecs.jit import compiled


@compiled
def decode_q2_k(packed: np.ndarray, out: np.ndarray) -> None:
    scales, lows = np.empty(256, np.float32), np.empty(256, np.float32)
    for b in range(len(packed)):
        block, values = packed[b], out[b]
        d, d_min = float16_at(block, 80), float16_at(block, 82)
        for sub in range(16):
            scales[16 * sub : 16 * sub + 16] = d * np.float32(np.uint8(block[sub] & 15))
            lows[16 * sub : 16 * sub + 16] = d_min * np.float32(np.uint8(block[sub] >> 4))
        for part in range(8):
            at = 32 * part
            levels = block[16 + part // 4 * 32 : 48 + part // 4 * 32]
            shift = np.uint8(part % 4 * 2)
            for i in range(32):
                level = np.uint8(levels[i] >> shift & 3)
                values[at + i] = scales[at + i] * np.float32(level) - lows[at + i]


@compiled
def decode_q3_k(packed: np.ndarray, out: np.ndarray) -> None:
    scales = np.empty(256, np.float32)
    for b in range(len(packed)):
        block, values = packed[b], out[b]
        d = float16_at(block, 108)
        for sub in range(16):
            lower = block[96 + sub % 8] >> (4 * (sub // 8)) & 15
            upper = block[104 + sub % 4] >> (2 * (sub // 4)) & 3
            scales[16 * sub : 16 * sub + 16] = d * np.float32(np.int8((lower | upper << 4) - 32))
        for part in range(8):
            at = 32 * part
            levels = block[32 + part // 4 * 32 : 64 + part // 4 * 32]
            shift, bit = np.uint8(part % 4 * 2), np.uint8(part)
            for i in range(32):
                level = (levels[i] >> shift & 3) | (block[i] >> bit & 1) << 2
                values[at + i] = scales[at + i] * np.float32(np.int8(level - 4))


@compiled
def scale_and_minimum(codes: np.ndarray, sub: int) -> tuple[np.uint8, np.uint8]:
    """The two 6-bit codes of sub-block ``sub`` in the 12 bytes of Q4_K and Q5_K."""
    if sub < 4:
        return np.uint8(codes[sub] & 63), np.uint8(codes[sub + 4] & 63)
    scale = np.uint8((codes[sub + 4] & 15) | (codes[sub - 4] >> 6) << 4)
    return scale, np.uint8((codes[sub + 4] >> 4) | (codes[sub] >> 6) << 4)


@compiled
def decode_q4_k(packed: np.ndarray, out: np.ndarray) -> None:
    for b in range(len(packed)):
        block, values = packed[b], out[b]
        d, d_min = float16_at(block, 0), float16_at(block, 2)
        for sub in range(8):
            scale_code, minimum_code = scale_and_minimum(block[4:16], sub)
            scale, low = d * np.float32(scale_code), d_min * np.float32(minimum_code)
            levels = block[16 + sub // 2 * 32 : 48 + sub // 2 * 32]
            shift = np.uint8(sub % 2 * 4)
            for i in range(32):
                values[32 * sub + i] = scale * np.float32(np.uint8(levels[i] >> shift & 15)) - low


@compiled
def decode_q5_k(packed: np.ndarray, out: np.ndarray) -> None:
    for b in range(len(packed)):
        block, values = packed[b], out[b]
        d, d_min = float16_at(block, 0), float16_at(block, 2)
        fifth = block[16:48]
        for sub in range(8):
            scale_code, minimum_code = scale_and_minimum(block[4:16], sub)
            scale, low = d * np.float32(scale_code), d_min * np.float32(minimum_code)
            levels = block[48 + sub // 2 * 32 : 80 + sub // 2 * 32]
            shift, bit = np.uint8(sub % 2 * 4), np.uint8(sub)
            for i in range(32):
                level = (levels[i] >> shift & 15) | (fifth[i] >> bit & 1) << 4
                values[32 * sub + i] = scale * np.float32(np.uint8(level)) - low


@compiled
def decode_q6_k(packed: np.ndarray, out: np.ndarray) -> None:
    scales = np.empty(256, np.float32)
    for b in range(len(packed)):
        block, values = packed[b], out[b]
        d = float16_at(block, 208)
        for sub in range(16):
            scales[16 * sub : 16 * sub + 16] = d * np.float32(np.int8(block[192 + sub]))
        for part in range(8):
            at, half, quarter = 32 * part, part // 4, part % 4
            start = 64 * half + quarter % 2 * 32
            levels, upper = block[start : start + 32], block[128 + 32 * half : 160 + 32 * half]
            shift, up = np.uint8(quarter // 2 * 4), np.uint8(2 * quarter)
            for i in range(32):
                level = (levels[i] >> shift & 15) | (upper[i] >> up & 3) << 4
                values[at + i] = scales[at + i] * np.float32(np.int8(level - 32))


@compiled
def scale_of_iq4(block: np.ndarray, sub: int) -> np.float32:
    """The scale of sub-block ``sub`` of a block of IQ4_XS."""
    lower = block[4 + sub // 2] >> (4 * (sub % 2)) & 15
    upper = block[2 + sub // 4] >> (2 * (sub % 4)) & 3
    return np.float32(float16_at(block, 0) * np.float32(np.int8((lower | upper << 4) - 32)))


@compiled
def decode_iq4_xs(packed: np.ndarray, out: np.ndarray) -> None:
    for b in range(len(packed)):
        block, values = packed[b], out[b]
        for sub in range(8):
            scale = scale_of_iq4(block, sub)
            levels, target = block[8 + 16 * sub : 24 + 16 * sub], values[32 * sub : 32 * sub + 32]
            for i in range(16):
                target[i] = scale * IQ4_VALUES[levels[i] & 15]
                target[16 + i] = scale * IQ4_VALUES[levels[i] >> 4]
