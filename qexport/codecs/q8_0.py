"""Q8_0: 32 values share a float16 scale, each is a signed byte.

The largest magnitude of a block maps to 127: ``d = amax / 127``, ``q = round(x / d)``, and a block is stored
as ``d`` in float16 followed by 32 bytes. Nothing is searched and no importance is used, so the work is
reading, scaling and rounding, and the type is as good as lossless (8.5 bits per weight).

The bytes are those of ggml's reference encoder (``quantize_row_q8_0_ref`` in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c), which fixes three details: values
are multiplied by a float32 ``1 / d`` with ``d`` before it is rounded to float16; halves round away from zero;
a zero block has zero bytes. What is different is the speed: this kernel reads bfloat16 as it is stored, finds
the maximum on integers (the order of magnitudes is the order of their bits) and has no branch in its loops.

Left out: values that are not finite, or too large for a float16 scale. ggml writes a block that decodes to
infinity or garbage; the kernel counts such blocks and the caller decides.
"""

from __future__ import annotations

import numpy as np
import torch

from qexport.codecs.ggml_types import GGML_TYPES
from qexport.codecs.jit import bits_of, compiled, float_of
from qexport.errors import UsageProblem

__all__ = ["quantize_into"]

TYPE = GGML_TYPES["Q8_0"]

# Constants as numpy scalars: a Python float would turn numba's arithmetic into float64.
_ZERO, _ONE, _TOP = np.float32(0), np.float32(1), np.float32(127)
_HALF = np.float32(0.5)
# The largest float32 below one half. trunc(x + 0.5) would round 0.49999997 up to 1.
_ALMOST_HALF = np.float32(0.49999997)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_F16_INFINITY = np.uint16(0x7C00)


def quantize_into(rows: torch.Tensor, out: np.ndarray) -> int:
    """Fill ``out`` with packed rows; returns the number of blocks whose scale float16 cannot represent.

    Args:
        rows: ``(n, columns)`` in bfloat16 or float32; columns a multiple of 32.
        out: uint8 ``(n, columns / 32 * 34)``.
    """
    if rows.dtype == torch.bfloat16:
        bits, shift = rows.contiguous().view(torch.uint16).numpy(), 16
    else:
        bits, shift = rows.contiguous().view(torch.uint32).numpy(), 0
    if out.shape != (len(bits), TYPE.row_bytes(bits.shape[1])) or out.dtype != np.uint8:
        raise UsageProblem(f"{bits.shape} values do not pack into {out.dtype} {out.shape}")
    # A file may place a tensor at any byte; numba would compile a second kernel for unaligned rows.
    return int(_quantize(np.require(bits, requirements=["C", "A"]), np.uint32(shift), out))


def _half_bits(value: np.float32) -> np.uint16:
    """float32 >= 0 to float16 bits, nearest even."""
    bits = bits_of(value)
    if bits >= np.uint32(0x47800000):  # 65536 and above
        return _F16_INFINITY
    if bits < np.uint32(0x38800000):  # subnormal in float16: adding 0.5 rounds at its last bit, 2**-24
        return np.uint16(bits_of(value + _HALF) - np.uint32(0x3F000000))
    # Move the exponent's bias from 127 to 15 (mod 2**32) and round off 13 bits of mantissa; a carry into the
    # exponent is right, up to infinity.
    rounded = bits - np.uint32(0x38000000) + np.uint32(0x0FFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    return np.uint16(rounded >> np.uint32(13))


def _quantize_blocks(bits: np.ndarray, shift: np.uint32, out: np.ndarray) -> int:
    bad = 0
    for row in range(bits.shape[0]):
        for block in range(bits.shape[1] // 32):
            source = bits[row, block * 32 : (block + 1) * 32]
            target = out[row, block * 34 : (block + 1) * 34]
            top = np.uint32(0)
            for i in range(32):
                top = max(top, (np.uint32(source[i]) << shift) & _MAGNITUDE)
            scale = float_of(top) / _TOP
            inverse = _ONE / scale if scale > _ZERO else _ZERO
            if bits_of(inverse) == _INFINITY:  # scale below 2**-128: zero in float16, and the bytes as well
                inverse = _ZERO
            half = _half_bits(scale)
            if half >= _F16_INFINITY:
                bad += 1
            target[0] = np.uint8(half & np.uint16(0xFF))
            target[1] = np.uint8(half >> np.uint16(8))
            for i in range(32):
                scaled = float_of(np.uint32(source[i]) << shift) * inverse
                nudged = scaled + (_ALMOST_HALF if scaled >= _ZERO else -_ALMOST_HALF)
                target[2 + i] = np.uint8(np.int32(nudged))
    return bad


_half_bits = compiled(_half_bits)
_quantize = compiled(_quantize_blocks)
