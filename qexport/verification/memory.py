"""What fits into memory: the bf16 source, and in which precision; a folder in a runtime that loads it whole.

Both are asked before anything is loaded. A process that the system kills for memory looks like one that the
artifact has brought down, and nothing would be further from the truth.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.evidence.machine import available_memory
from qexport.families.roles import Block

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.checkpoint.local import LocalCheckpoint
    from qexport.families.view import ModelView
    from qexport.verification.runtime import Settings


# Parts of a checkpoint that the reference never loads: it only predicts text, one token at a time.
SKIPPED_BLOCKS = (Block.MTP, Block.VISION)
# Weights and what a forward pass of a few hundred tokens needs beside them.
HEADROOM = 1.3
BF16_BYTES, F32_BYTES = 2, 4
# What a child needs beside weights: the interpreter, its runtime, a short prompt. 0.3 to 0.5 GB, measured.
_CHILD_BYTES = 600_000_000


@dataclass(frozen=True)
class Fit:
    """Whether the reference fits into memory, and as what."""

    parameters: int
    available: int

    @property
    def needed(self) -> int:
        return int(self.parameters * BF16_BYTES * HEADROOM)

    @property
    def ok(self) -> bool:
        return self.needed <= self.available

    @property
    def dtype(self) -> str:
        """``float32`` when that takes at most half of the memory, else ``bfloat16``."""
        return "float32" if 2 * self.parameters * F32_BYTES * HEADROOM <= self.available else "bfloat16"


@dataclass(frozen=True)
class Shortage:
    """Bytes that a runtime needs for a folder, and the fewer that are free."""

    runtime: str
    needed: int
    available: int
    way_out: str

    def __str__(self) -> str:
        words = f"not tried: {self.runtime} loads it whole and needs about {self.needed / 1e9:.1f} GB, "
        return f"{words}{self.available / 1e9:.1f} GB are free; {self.way_out}"


def shortage(
    runtime: str, artifact: Opened, stored: LocalCheckpoint, *, available: int | None = None
) -> Shortage | None:
    """Why this machine is too small for ``artifact`` in ``runtime``; ``None`` if it is not.

    vLLM and SGLang count for themselves, on GPUs too, and say what they lack.

    Args:
        stored: the same folder, as tensors.
        available: bytes; what is free now if not given.
    """
    if runtime == "transformers":
        weights = _transformers_bytes(artifact, stored)
        elsewhere = ", or by a runtime that keeps weights packed: --runtime vllm --runtime-python PATH"
    elif runtime in ("mlx-lm", "mlx-vlm"):
        weights, elsewhere = _mlx_bytes(stored), ""
    else:
        return None
    needed = weights + _CHILD_BYTES
    available = _for_children() if available is None else available
    if needed <= available:
        return None
    way_out = f"prove it on a larger machine with `qexport verify {artifact.label}`{elsewhere}"
    return Shortage(runtime, needed, available, way_out)


def _transformers_bytes(artifact: Opened, stored: LocalCheckpoint) -> int:
    """The trunk in bf16 beside what is stored: native FP8 and NVFP4 are still there when the last is decoded.

    Measured on 1.2 B parameters, without the child's own: native FP8 3.4 GB where this says 3.8, NVFP4 of all
    linear layers 2.9 for 3.4, FP8 of compressed-tensors 2.8 for 3.9.
    """
    size = sum(tensor.stop - tensor.start for tensor in stored.tensors.values())
    if artifact.layout.plain:
        return size
    return size + fit(artifact.view(), available=0).parameters * BF16_BYTES


def _mlx_bytes(stored: LocalCheckpoint) -> int:
    """What mlx-lm and mlx-vlm hold: what is stored, its floating-point numbers widened on a CPU."""
    widened = 1 if sys.platform == "darwin" else 2
    return sum(
        (tensor.stop - tensor.start) * (widened if tensor.dtype in ("BF16", "F16") else 1)
        for tensor in stored.tensors.values()
    )


def _for_children() -> int:
    """Free bytes on Linux, which kills for more; elsewhere, where nobody says what is free, all there are."""
    linux = sys.platform == "linux"
    return available_memory() if linux else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_limit(settings: Settings) -> int:
    """Bytes that a runtime's process may take: what its user says, else nearly all that is free now."""
    return settings.memory_limit or available_memory() * 19 // 20


def fit(view: ModelView, *, available: int | None = None) -> Fit:
    """Parameters of the language model against the memory that is free now."""
    parameters = sum(tensor.data.numel for tensor in view if tensor.block not in SKIPPED_BLOCKS)
    return Fit(parameters, available_memory() if available is None else available)
