"""How far rows are from those that they stand for: for all of them, and for each run of a few columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qexport.codecs.jit import compiled, float_of
from qexport.codecs.source_bits import source_bits

if TYPE_CHECKING:
    import torch


_RUN, _SHORTEST = 128, 32


@dataclass(frozen=True)
class Apart:
    """Sums of squares over runs of columns, each float64 ``(rows, runs)``.

    Attributes:
        wrong: of the differences.
        energy: of what should be there.
        product: the sum of the products of both over all rows.
        run: columns of a run.
    """

    wrong: np.ndarray
    energy: np.ndarray
    product: float
    run: int


def apart(mine: torch.Tensor, theirs: torch.Tensor) -> Apart:
    """Compare ``(rows, columns)`` in bfloat16, float16 or float32, without rounding.

    A run is 128 columns, 64 or 32, where that divides the row; else the row is one.

    Raises:
        UsageProblem: another dtype.
    """
    rows, columns = mine.shape
    run = math.gcd(columns, _RUN)
    run = run if run >= _SHORTEST else columns
    wrong, energy = np.zeros((rows, columns // run)), np.zeros((rows, columns // run))
    (one, up), (other, raised) = source_bits(mine), source_bits(theirs)
    product = _apart(one, up, other, raised, run, wrong, energy)
    return Apart(wrong, energy, float(product), run)


@compiled
def _apart(
    mine: np.ndarray,
    up: np.uint32,
    theirs: np.ndarray,
    raised: np.uint32,
    run: int,
    wrong: np.ndarray,
    energy: np.ndarray,
) -> float:
    product = 0.0
    for row in range(mine.shape[0]):
        one, other = mine[row], theirs[row]
        for number in range(wrong.shape[1]):
            # Of a run, float32 sums are exact enough, and twice as fast.
            off, size, both = np.float32(0), np.float32(0), np.float32(0)
            for i in range(number * run, (number + 1) * run):
                x = float_of(np.uint32(np.uint32(one[i]) << up))
                y = float_of(np.uint32(np.uint32(other[i]) << raised))
                off += (x - y) * (x - y)
                size += y * y
                both += x * y
            wrong[row, number] = off
            energy[row, number] = size
            product += float(both)
    return product
