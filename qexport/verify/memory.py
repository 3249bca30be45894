"""Whether the bf16 source fits into memory beside everything else, and in which precision."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.families.roles import Block

if TYPE_CHECKING:
    from qexport.families.view import ModelView

__all__ = ["SKIPPED_BLOCKS", "Fit", "fit"]

# Parts of a checkpoint that the reference never loads: it only predicts text, one token at a time.
SKIPPED_BLOCKS = (Block.MTP, Block.VISION)
# Weights and what a forward pass of a few hundred tokens needs beside them.
_HEADROOM = 1.3
_BF16_BYTES, _F32_BYTES = 2, 4
_NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class Fit:
    """Whether the reference fits into memory, and as what."""

    parameters: int
    available: int

    @property
    def needed(self) -> int:
        return int(self.parameters * _BF16_BYTES * _HEADROOM)

    @property
    def ok(self) -> bool:
        return self.needed <= self.available

    @property
    def dtype(self) -> str:
        """``float32`` when that takes at most half of the memory, else ``bfloat16``."""
        return "float32" if 2 * self.parameters * _F32_BYTES * _HEADROOM <= self.available else "bfloat16"


def fit(view: ModelView, *, available: int | None = None) -> Fit:
    """Parameters of the language model against the memory that is free now."""
    parameters = sum(tensor.data.numel for tensor in view if tensor.block not in SKIPPED_BLOCKS)
    return Fit(parameters, _available_memory() if available is None else available)


def _available_memory() -> int:
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
