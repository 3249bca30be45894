"""How far something has come, told to whoever watches it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One phase: bytes that are written, batches through layers, artifacts that are proven."""

    def advance(self, amount: int) -> None:
        """``amount`` more is done."""
        ...
