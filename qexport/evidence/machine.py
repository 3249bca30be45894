"""What is asked of the machine: bf16 instructions, free memory, and that freed memory goes back."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_NO_LIMIT = 1 << 62


def multiplies_bf16() -> bool:
    """Whether torch multiplies bf16 matrices on this CPU faster than float32 ones.

    Known for x86 only; elsewhere the answer is no, which is slower at worst.
    """
    import torch

    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def return_freed_memory() -> None:
    """Have glibc give what was freed back to the system. Elsewhere it does nothing.

    Left alone, glibc keeps freed weights of up to 32 MB in its heap, where blocks of other sizes come to lie
    between them: the pass over a 1.3 B model peaked at twice its need. Forbidding the heap to large blocks
    would do, too, but then each of them is made of new pages, which takes a quarter of the pass's time.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def available_memory() -> int:
    """Bytes that could be used now: what Linux calls MemAvailable, else the free pages, else nothing."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _cgroup_left())
    except OSError:
        pass
    try:
        # macOS counts no available pages here; half of the machine is the careful guess.
        names = os.sysconf_names
        if "SC_AVPHYS_PAGES" in names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (OSError, ValueError):
        return 0


def _cgroup_left() -> int:
    """What a container's limit leaves (cgroup v2); no limit is a very large number."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        inactive = 0
        for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
            if line.startswith("inactive_file "):
                inactive = int(line.split()[1])  # cache that the kernel gives back
    except (OSError, ValueError):
        return _NO_LIMIT
    return _NO_LIMIT if limit == "max" else max(0, int(limit) - used + inactive)
