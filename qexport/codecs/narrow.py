"""A float32 rounded to what bfloat16 or float16 can hold, in a register.

Libraries that divide in the model's dtype round the quotient to it before they round it to eight bits; equal
bytes need that first rounding. To nearest even, as torch rounds. Left out: numbers of 65520 and more, which
are infinite in float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qexport.codecs.jit import bits_of, compiled, float_of

if TYPE_CHECKING:
    import torch


# How many bits of float32's mantissa each dtype has not.
AS_IT_IS = np.uint32(0)
AS_BFLOAT16 = np.uint32(16)
AS_FLOAT16 = np.uint32(13)

_ONE = np.uint32(1)
_SMALLEST_NORMAL = np.float32(2.0**-14)
# Below float16's normal numbers the step is 2**-24: that of float32 from one half on.
_ALIGN = np.float32(0.5)


def rounding_of(dtype: torch.dtype) -> np.uint32:
    """The rounding that arithmetic in ``dtype`` does."""
    import torch

    return {torch.bfloat16: AS_BFLOAT16, torch.float16: AS_FLOAT16}.get(dtype, AS_IT_IS)


@compiled
def narrow(value: np.float32, lost: np.uint32) -> np.float32:
    """``value``, not negative and finite, with ``lost`` bits of mantissa rounded away."""
    half = np.uint32((_ONE << lost) >> _ONE)
    bits = bits_of(value)
    even = np.uint32((bits >> lost) & (half != 0))
    rounded: np.float32 = float_of(np.uint32((bits + np.uint32(half - (half != 0)) + even) >> lost << lost))
    if lost == AS_FLOAT16 and value < _SMALLEST_NORMAL:
        rounded = np.float32(value + _ALIGN) - _ALIGN
    return rounded
