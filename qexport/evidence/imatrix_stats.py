"""What llama-imatrix writes beside the sums of each tensor: twelve numbers that describe them.

As ``compute_vector_statistics`` and ``compute_tensor_statistics`` have it in
https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/imatrix.cpp: of the mean inputs of columns
where they were summed, else of the mean squares; the last six against the same tensor of the layer before.
Experts that saw no token are left out. Nothing reads them yet; files are the same as that tool's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from qexport.evidence.imatrix_file import ImportanceMatrix


SCHEMA = (
    *("sum_sq", "mean", "elements", "std_deviation", "skewness", "kurtosis"),
    *("gain", "h_norm", "l2_dist", "cossim", "pearson", "covariance"),
)
_BLOCK = re.compile(r"blk\.(\d+)")
_NONE = 1e-10


def described(matrix: ImportanceMatrix) -> Mapping[str, np.ndarray]:
    """By tensor, float32 ``(12,)`` in the order of ``SCHEMA``; not a number where there is none."""
    import numpy as np

    head = _head_starts(matrix)
    found: dict[str, np.ndarray] = {}
    for name in matrix.sums:
        before = _before(matrix, name, head)
        alone, together = _alone(matrix, name), _together(matrix, name, before)
        (gain, *others) = together
        found[name] = np.array([*alone[:6], gain, alone[6], *others], np.float32)
    return found


def _per_token(matrix: ImportanceMatrix, table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Means of the experts that saw something, as they are multiplied there: float64."""
    import numpy as np

    counts = matrix.counts[name]
    seen = counts > 0
    return (table[name][seen].astype(np.float64) * (1.0 / counts[seen])[:, None]).reshape(-1)


def _alone(matrix: ImportanceMatrix, name: str) -> tuple[float, ...]:
    import numpy as np

    squares = _per_token(matrix, matrix.sums, name)
    values = _per_token(matrix, matrix.totals, name) if name in matrix.totals else squares
    count = len(squares)
    if not count:
        return (0.0,) * 7
    mean = float(values.mean())
    apart = values - mean
    second, third, fourth = (float((apart**power).sum()) / count for power in (2, 3, 4))
    deviation = float(np.sqrt(np.float32(second if count > 1 else 0.0)))
    skew, kurtosis = 0.0, 0.0
    if deviation > _NONE:
        skew, kurtosis = third / (second * math.sqrt(second)), fourth / second**2 - 3
    energy = float(squares[squares > 0].sum())
    shares = squares / energy if energy > 0 else np.zeros(1)
    shares = shares[shares > _NONE]
    entropy = np.float32(-(shares * np.log(shares)).sum() / math.log(2))
    evenness = 100 * (entropy / np.log2(np.float32(count))) if count > 1 else math.nan
    return float(squares.sum()), mean, float(count), deviation, skew, kurtosis, float(evenness)


def _together(matrix: ImportanceMatrix, name: str, before: str | None) -> tuple[float, ...]:
    """Gain, distance, cosine, correlation and covariance against the layer before."""
    import numpy as np

    nothing = (math.nan,) * 5
    if before is None or matrix.sums[before].size != matrix.sums[name].size:
        return nothing
    table = matrix.totals if {name, before} <= set(matrix.totals) else matrix.sums
    one, other = (_means(matrix, table, each) for each in (name, before))
    both = np.isfinite(one) & np.isfinite(other)
    one, other = one[both], other[both]
    if not len(one):
        return nothing
    apart, around, about = one - other, one - one.mean(), other - other.mean()
    covariance = float(around @ about)
    return (
        _gain(matrix, name, before),
        math.sqrt(float(apart @ apart)),
        _ratio(float(one @ other), float(one @ one), float(other @ other)),
        _ratio(covariance, float(around @ around), float(about @ about)),
        covariance / len(one) if len(one) > 1 else math.nan,
    )


def _gain(matrix: ImportanceMatrix, name: str, before: str) -> float:
    mine, theirs = (_per_token(matrix, matrix.sums, each) for each in (name, before))
    if theirs.sum() > _NONE:
        return math.sqrt(float(mine.mean())) / math.sqrt(float(theirs.mean()))
    return 1.0 if mine.sum() <= _NONE else math.nan


def _ratio(product: float, one: float, other: float) -> float:
    """A cosine; 0 where one side is nothing, and none where both are."""
    if one > 0 and other > 0:
        return max(-1.0, min(1.0, product / (math.sqrt(one) * math.sqrt(other))))
    return math.nan if one == other == 0 else 0.0


def _means(matrix: ImportanceMatrix, table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Of every expert, in float32 and then float64; not a number where nothing was seen."""
    import numpy as np

    counts = matrix.counts[name].astype(np.float32)[:, None]
    scale = np.float32(1) / np.maximum(counts, np.float32(1))
    means = np.where(counts > 0, table[name] * scale, np.float32(math.nan))
    return means.reshape(-1).astype(np.float64)


def _head_starts(matrix: ImportanceMatrix) -> float:
    """The first block of an MTP head."""
    blocks = [(int(found[1]), name) for name in matrix.sums if (found := _BLOCK.search(name))]
    if matrix.nextn_layers and blocks:
        return max(0, max(blocks)[0] + 1 - matrix.nextn_layers)
    return min((block for block, name in blocks if f"blk.{block}.nextn." in name), default=math.inf)


def _before(matrix: ImportanceMatrix, name: str, head: float) -> str | None:
    """The same tensor of the nearest layer below that has it, in trunk or head."""
    found = _BLOCK.search(name)
    if found is None or int(found[1]) in (0, head):
        return None
    block = int(found[1])
    first = int(head) if block > head else 0
    names = (
        f"{name[: found.start()]}blk.{at}{name[found.end() :]}" for at in range(block - 1, first - 1, -1)
    )
    return next((each for each in names if each in matrix.sums), None)
