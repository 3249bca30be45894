"""Counting NaN and infinity in the bits, without a float32 copy.

In IEEE 754 formats a value is NaN or infinite exactly when all bits of its exponent are one. Masking the
sign off leaves an integer that is at least the exponent mask in that case and below it otherwise, so one
comparison per value on the integer view decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import InputError

if TYPE_CHECKING:
    import torch

# Half a megabyte of bf16 at a time stays in cache, and keeps the temporary small beside gigabytes.
_CHUNK = 1 << 18


def nonfinite_count(t: torch.Tensor) -> int:
    """How many values of ``t`` are NaN or infinite.

    Args:
        t: bfloat16, float16 or float32, any shape, any strides; not changed. Temporaries take about 1 MB. Of
            uint8, which is packed, every value is finite.

    Raises:
        InputError: another dtype.
    """
    import torch

    # Sign bit cleared by the mask, then `> largest finite`; int views are signed, so the result is positive.
    rules = {
        torch.bfloat16: (torch.int16, 0x7FFF, 0x7F7F),
        torch.float16: (torch.int16, 0x7FFF, 0x7BFF),
        torch.float32: (torch.int32, 0x7FFFFFFF, 0x7F7FFFFF),
    }
    if t.dtype == torch.uint8:
        return 0
    if t.dtype not in rules:
        raise InputError(f"values of {t.dtype} cannot be counted as finite or not.")
    integer, magnitude, largest = rules[t.dtype]
    flat = t.detach().reshape(-1).view(integer)
    total = 0
    for at in range(0, flat.numel(), _CHUNK):
        bits = flat[at : at + _CHUNK] & magnitude
        # The maximum is one vectorized pass, five times faster than comparing and counting, and nearly
        # every chunk ends there.
        if int(bits.max()) > largest:
            total += int(torch.count_nonzero(bits > largest))
    return total
