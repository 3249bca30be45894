"""Whether the bf16 source fits into memory beside everything else, and in which precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.calibrate.machine import available_memory
from qexport.families.roles import Block

if TYPE_CHECKING:
    from qexport.families.view import ModelView

__all__ = ["SKIPPED_BLOCKS", "Fit", "fit"]

# Parts of a checkpoint that the reference never loads: it only predicts text, one token at a time.
SKIPPED_BLOCKS = (Block.MTP, Block.VISION)
# Weights and what a forward pass of a few hundred tokens needs beside them.
_HEADROOM = 1.3
_BF16_BYTES, _F32_BYTES = 2, 4


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
    return Fit(parameters, available_memory() if available is None else available)
