"""How to run a model in pieces: a value that can be made without loading torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path


Precision = Literal["auto", "mixed", "bfloat16", "float32"]


@dataclass(frozen=True)
class StreamOptions:
    """How to run the pass.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        precision: how products are done: ``mixed`` takes bf16 and gives float32, ``bfloat16`` gives bf16,
            ``float32`` rounds nothing. ``auto`` is float32 for a checkpoint that is not bf16; bfloat16 for a
            dense one on a CPU that multiplies it; else mixed (rounded results send tokens to other experts).
        threads: processors for the CPU's products; all by default.
        batch_tokens: tokens that go through a layer at once; a default for the device.
        activation_memory: bytes of hidden states that may stay in memory; more spill to a file. Half of what
            is free by default.
        spill_folder: where that file goes; the system's folder for temporary files by default.
    """

    device: str = "cpu"
    precision: Precision = "auto"
    threads: int | None = None
    batch_tokens: int | None = None
    activation_memory: int | None = None
    spill_folder: Path | None = None
