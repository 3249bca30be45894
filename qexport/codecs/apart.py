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
    """Sums over runs of columns, each float64 ``(rows, runs)``.

    Attributes:
        wrong: of the squares of differences.
        energy: of the squares of what should be there.
        product: of the products of both.
        shift: of the differences.
        sizes: of product^2 / energy of 32 columns each, where the run is so many times that; else its own.
        run: columns of a run.
    """

    wrong: np.ndarray
    energy: np.ndarray
    product: np.ndarray
    shift: np.ndarray
    sizes: np.ndarray
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
    fine = run if run % _SHORTEST else _SHORTEST
    wrong, energy, product, shift, sizes = (np.zeros((rows, columns // run)) for _ in range(5))
    (one, up), (other, raised) = source_bits(mine), source_bits(theirs)
    _apart(one, up, other, raised, run, fine, wrong, energy, product, shift, sizes)
    return Apart(wrong, energy, product, shift, sizes, run)


@compiled
def _apart(
    mine: np.ndarray,
    up: np.uint32,
    theirs: np.ndarray,
    raised: np.uint32,
    run: int,
    fine: int,
    wrong: np.ndarray,
    energy: np.ndarray,
    product: np.ndarray,
    shift: np.ndarray,
    sizes: np.ndarray,
) -> None:
    for row in range(mine.shape[0]):
        one, other = mine[row], theirs[row]
        for number in range(wrong.shape[1]):
            for first in range(number * run, (number + 1) * run, fine):
                # Of so few, float32 sums are exact enough, and twice as fast.
                off, size, both, moved = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
                for i in range(first, first + fine):
                    x = float_of(np.uint32(np.uint32(one[i]) << up))
                    y = float_of(np.uint32(np.uint32(other[i]) << raised))
                    off += (x - y) * (x - y)
                    size += y * y
                    both += x * y
                    moved += x - y
                wrong[row, number] += off
                energy[row, number] += size
                product[row, number] += both
                shift[row, number] += moved
                if size > 0:
                    sizes[row, number] += float(both) * float(both) / float(size)
