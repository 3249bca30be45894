"""What the pass asks of the machine: bf16 instructions, and memory that goes back when it is freed."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["multiplies_bf16", "return_freed_memory"]

_M_MMAP_THRESHOLD = -3  # glibc, malloc.h
_THRESHOLD = 4 << 20


def multiplies_bf16() -> bool:
    """Whether torch multiplies bf16 matrices on this CPU faster than float32 ones.

    Known for x86 only; elsewhere the answer is no, which is slower at worst.
    """
    import torch

    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def return_freed_memory() -> None:
    """From now on glibc gives large blocks back to the system when they are freed. Elsewhere it does nothing.

    Left alone, glibc learns from the first freed weight of 30 MB to serve the next ones from its heap, where
    blocks of other sizes come to lie between them: the pass over a 1.3 B model peaked at twice its need.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
