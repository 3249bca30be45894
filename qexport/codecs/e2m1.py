"""FP4 E2M1 in a register: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign.

Levels from 1 on have one bit of mantissa, below it the step is one half. The rounding is to nearest, ties to
the even code: 0.25 becomes 0, 2.5 becomes 2, 5 becomes 4.
"""

from __future__ import annotations

import numpy as np

from qexport.codecs.jit import bits_of, compiled

LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TOP_LEVEL = np.float32(6)

_ONE, _TWO, _FOUR = np.float32(1), np.float32(2), np.float32(4)
_REBIAS = np.uint32((127 - 1) << 23)
# Adding one of these leaves a float32 whose last bit is worth one half, one or two: the processor rounds.
_HALVES, _ONES, _TWOS = np.float32(2.0**22), np.float32(2.0**23), np.float32(2.0**24)
_HALVES_BITS = np.uint32(0x4A800000)


@compiled
def e2m1_code(level: np.float32) -> np.uint32:
    """The three bits of a number of 0 or more; beyond 6 those of 6."""
    level = level if level < TOP_LEVEL else TOP_LEVEL
    rebased = np.uint32(bits_of(level) - _REBIAS)
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
