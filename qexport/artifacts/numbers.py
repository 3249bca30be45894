"""Packed numbers back to float32: 4 and 8 bit floats with scales of their own, as five formats store them.

=============  ===========================================================================================
E2M1           four bits: a sign, then 0, 0.5, 1, 1.5, 2, 3, 4 or 6; the even column in the low bits of a byte
E4M3           torch's ``float8_e4m3fn``
E8M0           a power of two: the byte minus 127 is the exponent, 255 is not a number
=============  ===========================================================================================

These are plain torch and independent of the kernels that write (:mod:`qexport.codecs`): what they decode is
what is checked. Every result is one float32 product away from its codes; nothing is rounded to bfloat16 on
the way, as some kernels do.

https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def e2m1(packed: torch.Tensor) -> torch.Tensor:
    """uint8 ``(n, columns / 2)`` to float32 ``(n, columns)``."""
    import torch

    table = torch.tensor([*_LEVELS, *(-level for level in _LEVELS)])
    pairs = torch.stack((packed & 15, packed >> 4), dim=-1)
    return table[pairs.view(len(packed), -1).int()]


def e4m3(codes: torch.Tensor) -> torch.Tensor:
    """uint8 or float8 to float32."""
    import torch

    return codes.view(torch.float8_e4m3fn).float()


def e8m0(codes: torch.Tensor) -> torch.Tensor:
    """uint8 or float8 to float32."""
    import torch

    return codes.view(torch.float8_e8m0fnu).float()


def grouped(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``(n, columns)`` values, in place, times ``(n, groups)`` scales of equal runs of columns."""
    n, groups = scales.shape
    values.view(n, groups, -1).mul_(scales[:, :, None])
    return values
