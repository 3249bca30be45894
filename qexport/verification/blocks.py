"""Standard errors of means over a text.

What a model says at one place and at the next is not independent: a hard passage is hard for many tokens. So
the positions of a window are cut into blocks of about 64 neighbours, and the error of the mean comes from how
the blocks' means spread (batch means). Blocks never reach over windows, each of which is a text of its own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


BLOCK = 64


def block_error(values: np.ndarray, block: int = BLOCK) -> float | None:
    """The standard error of the mean of ``values``, ``(windows, positions)``; ``None`` for a single block."""
    import numpy as np

    windows, positions = values.shape
    pieces = max(1, round(positions / block))
    if windows * pieces < 2:
        return None
    parts = np.array_split(values.astype(np.float64), pieces, axis=1)
    sums = np.concatenate([part.sum(1) for part in parts])
    sizes = np.concatenate([np.full(windows, part.shape[1]) for part in parts])
    count = len(sums)
    # Of a ratio, since blocks differ in length by one.
    spread = ((sums - sizes * sums.sum() / sizes.sum()) ** 2).sum()
    return math.sqrt(count / (count - 1) * spread) / int(sizes.sum())
