"""One row of NVFP4 at a time: what the plain quantizer and the search for scales have in common.

Two libraries define the bytes, and they round at different places. ``shared`` is the global scale as each
stores it.

* ModelOpt multiplies: a block's scale is ``top / (6 * shared)``, limited to 2**-9 to 448, and 1 for a block
  of zeros; a value is divided by ``scale * shared``, rounded to float32.
* compressed-tensors divides: a block's scale is ``(top / 6) * shared``, where ``top / 6`` is rounded to the
  rows' dtype, limited to 448, and 2**-3 where it rounds to zero; a value is divided by ``scale / shared``.

A negative zero loses its sign in both, a small negative number keeps it.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.e2m1 import TOP_LEVEL, e2m1_code
from qexport.codecs.e4m3 import E4M3_MAX, e4m3_bits, e4m3_value
from qexport.codecs.jit import compiled, float_of
from qexport.codecs.narrow import narrow

BLOCK = 16
MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITY = np.uint32(0x7F800000)

_ZERO, _ONE = np.float32(0), np.float32(1)
_SMALLEST_SCALE = np.float32(2.0**-9)
_EIGHTH = np.uint8(0x20)


@compiled
def row_tops(values: np.ndarray, tops: np.ndarray) -> int:
    """Each block's largest magnitude, as bits; returns how many blocks hold a NaN or infinity."""
    bad = 0
    for block in range(len(tops)):
        top = np.uint32(0)
        for i in range(BLOCK):
            top = max(top, np.uint32(values[block * BLOCK + i] & MAGNITUDE))
        tops[block] = top
        bad += 1 if top >= INFINITY else 0
    return bad


@compiled
def row_scales(
    tops: np.ndarray, shared: np.float32, divides: bool, rounding: np.uint32, scales: np.ndarray
) -> None:
    """Each block's E4M3 scale: its largest magnitude becomes 6. ``rounding`` as in ``narrow``."""
    unit = np.float32(TOP_LEVEL * shared)
    for block in range(len(tops)):
        if divides:
            scale = np.float32(narrow(float_of(tops[block]) / TOP_LEVEL, rounding) * shared)
            byte = e4m3_bits(scale if scale < E4M3_MAX else E4M3_MAX)
            scales[block] = byte if byte else _EIGHTH
        else:
            scale = np.float32(float_of(tops[block]) / unit)
            scale = scale if scale != _ZERO else _ONE
            scale = scale if scale > _SMALLEST_SCALE else _SMALLEST_SCALE
            scales[block] = e4m3_bits(scale if scale < E4M3_MAX else E4M3_MAX)


@compiled
def step_of(scale: np.uint8, shared: np.float32, divides: bool) -> np.float32:
    """What a level of 1 is worth in a block with this scale."""
    value = e4m3_value(scale)
    step: np.float32 = value / shared if divides else value * shared
    return step


@compiled
def row_codes(values: np.ndarray, steps: np.ndarray, codes: np.ndarray, packed: np.ndarray) -> None:
    """Pack float32 bits; ``steps`` has one for each block, ``codes`` is scratch of 16 words."""
    for block in range(len(steps)):
        for i in range(BLOCK):
            bits = values[block * BLOCK + i]
            level = float_of(np.uint32(bits & MAGNITUDE)) / steps[block]
            negative = np.uint32(8) if level > _ZERO else np.uint32(0)
            codes[i] = e2m1_code(level) | (np.uint32(bits >> np.uint32(28)) & negative)
        for i in range(BLOCK // 2):
            pair = codes[2 * i] | codes[2 * i + 1] << np.uint32(4)
            packed[block * (BLOCK // 2) + i] = np.uint8(pair)
