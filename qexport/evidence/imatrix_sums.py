"""Arithmetic on importance matrices: adding several into one, and what can be said of each tensor.

Both follow llama-imatrix, so that a matrix that was added to here can be added to there, and the numbers of
``--show-statistics`` compare: https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/imatrix.cpp
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.evidence.imatrix_file import ImportanceMatrix
from qexport.evidence.sensitivity import added

if TYPE_CHECKING:
    import numpy as np


_ACTIVE = 1e-5  # a mean square up to this counts as a column that is not used


def merged(matrices: Sequence[ImportanceMatrix], label: str, chunk_size: int) -> ImportanceMatrix:
    """The sum of several matrices of one model, in the GGUF form; sensitivities of those that have them.

    Args:
        label: what the result is called.
        chunk_size: tokens in a chunk of the result; legacy files count calls, each taken for one chunk.

    Raises:
        InputError: two of them differ in the size of a tensor: they belong to different models.
    """
    import numpy as np

    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    totals: dict[str, np.ndarray] = {}
    for matrix in matrices:
        scale = chunk_size if matrix.form == "legacy" else 1
        for name in matrix.sums:
            found, seen = matrix.sums[name].astype(np.float64) * scale, matrix.counts[name] * scale
            before = counts.get(name, seen)
            stacks = {len(seen), len(before)} - {1}  # one count may stand for all experts of a stack
            if sums.get(name, found).size != found.size or len(stacks) > 1:
                shape, wanted = (_shape(part) for part in (found, sums[name]))
                raise InputError(
                    f"{matrix.label}: {name} has {shape} values, not {wanted} as in {matrices[0].label}",
                    hint="These importance matrices were made for different models.",
                )
            rows = max(len(seen), len(before))
            total = sums.get(name, np.zeros(found.size)).reshape(-1) + found.reshape(-1)
            sums[name] = total.reshape(rows, -1)
            counts[name] = _spread(counts.get(name, np.zeros(rows, np.int64)), rows) + _spread(seen, rows)
    for name, whole in sums.items():
        of_inputs = [each.totals.get(name) for each in matrices if name in each.sums]
        kept = [inputs for inputs in of_inputs if inputs is not None]
        if len(kept) == len(of_inputs):  # a sum of some of them is the sum of nothing
            total = sum((inputs.reshape(-1).astype(np.float64) for inputs in kept), np.zeros(whole.size))
            totals[name] = total.astype(np.float32).reshape(whole.shape)
    sensitive = [(each.label, each.sensitivity) for each in matrices if each.sensitivity is not None]
    datasets = tuple(dict.fromkeys(name for matrix in matrices for name in matrix.datasets))
    most = max(int(seen.max()) for seen in counts.values())
    return ImportanceMatrix(
        sums={name: total.astype(np.float32) for name, total in sums.items()},
        counts=counts,
        datasets=datasets,
        chunk_count=most // chunk_size,
        chunk_size=chunk_size,
        form="gguf",
        label=label,
        totals=totals,
        to_come=any(each.to_come for each in matrices),
        nextn_layers=next((each.nextn_layers for each in matrices if each.nextn_layers), 0),
        sensitivity=added(sensitive),
    )


def _shape(values: np.ndarray) -> str:
    rows, columns = values.shape
    return f"{columns}" if rows == 1 else f"{rows} x {columns}"


def _spread(counts: np.ndarray, rows: int) -> np.ndarray:
    """A legacy count holds for every expert of a stack."""
    import numpy as np

    return counts if len(counts) == rows else np.full(rows, counts[0])


@dataclass(frozen=True)
class TensorStatistics:
    """What a matrix says of one tensor's input columns (experts that saw nothing left out).

    Attributes:
        total, mean, smallest, largest: of the mean squares.
        active: share of columns above 1e-5.
        columns: how many there are.
        entropy: of their distribution, in bits; ``log2(columns)`` where all are alike.
        outliers: share of columns more than one standard deviation above the mean.
        similarity: cosine to the same tensor of the layer before, ``None`` where there is none.
        unseen: experts that saw no token, of how many.
    """

    name: str
    total: float
    mean: float
    smallest: float
    largest: float
    active: float
    columns: int
    entropy: float
    outliers: float
    similarity: float | None
    unseen: tuple[int, int]


def statistics(matrix: ImportanceMatrix) -> list[TensorStatistics]:
    """Statistics of every tensor, in the file's order."""
    return [_of(matrix, name) for name in matrix.sums]


def _of(matrix: ImportanceMatrix, name: str) -> TensorStatistics:
    import numpy as np

    seen = matrix.counts[name] > 0
    values = matrix.entries[name][seen].astype(np.float64).reshape(-1)
    if not values.size:
        values = np.zeros(1)
    total, mean, deviation = values.sum(), values.mean(), values.std()
    shares = values[values > 0] / total if total > 0 else np.ones(1)
    above = (values - mean) / deviation > 1 if deviation > 0 else np.zeros(1, bool)
    return TensorStatistics(
        name=name,
        total=float(total),
        mean=float(mean),
        smallest=float(values.min()),
        largest=float(values.max()),
        active=float((values > _ACTIVE).mean()),
        columns=int(values.size),
        entropy=float(-(shares * np.log2(shares)).sum()),
        outliers=float(above.mean()),
        similarity=_similarity(matrix, name),
        unseen=(int((~seen).sum()), len(seen)),
    )


def _similarity(matrix: ImportanceMatrix, name: str) -> float | None:
    import numpy as np

    block, _, rest = name.removeprefix("blk.").partition(".")
    if not name.startswith("blk.") or not block.isdigit():
        return None
    before = matrix.sums.get(f"blk.{int(block) - 1}.{rest}")
    if before is None or before.size != matrix.sums[name].size:
        return None
    one = matrix.sums[name].reshape(-1).astype(np.float64)
    other = before.reshape(-1).astype(np.float64)
    sizes = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / sizes if sizes > 0 else None
