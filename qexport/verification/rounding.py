"""Every matrix of a GGUF beside its source, 256 numbers at a time: as near as its type rounds?

Below four bits a model's answers are so far from the source's that one damaged matrix among hundreds hides in
them. Its numbers do not hide. How far rounding moves a matrix, relative to its own size, is nearly a constant
of the type; other points of a grid, or other rows, move it further. And whatever is rounded keeps its size:
the factor that brings a block nearest to its source is about 1, and half of that where its scale is doubled.
Of a superblock it is the median over its 8 parts: types without a zero are far off beside one large number.

:data:`LIMITS` are 1.5 times the worst matrix that was measured where values come from a grid (IQ3 and below),
2 to 3 times elsewhere, where error feedback may move them further. What importance of other tensors does is
within them: it moves errors to other columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.codecs.ggml_types import ggml_type
from qexport.onepass.rows import read_rows
from qexport.receipt.text import percent
from qexport.receipt.verification import Check, Status, Verdict

if TYPE_CHECKING:
    from qexport.checkpoint.tensors import LogicalTensor
    from qexport.families.view import ModelView


LIMITS = {
    "Q8_0": 0.02,
    "Q6_K": 0.06,
    "Q5_K": 0.1,
    "Q5_0": 0.12,
    "Q5_1": 0.12,
    "Q4_K": 0.2,
    "IQ4_NL": 0.2,
    "IQ4_XS": 0.2,
    "Q4_0": 0.25,
    "Q4_1": 0.25,
    "NVFP4": 0.25,
    "MXFP4": 0.3,
    "Q3_K": 0.4,
    "IQ3_S": 0.27,
    "IQ3_XXS": 0.35,
    "Q2_K": 0.65,
    "IQ2_S": 0.42,
    "IQ2_XS": 0.5,
    "IQ2_XXS": 0.56,
    "IQ1_M": 0.85,
    "IQ1_S": 0.8,
}
"""By type, of a matrix: the root mean square of what rounding moves, of what is there."""
FACTORS = 0.55, 1.6
"""Of a block; measured 0.68 to 1.39."""
_PART = 32
_FAINT = 1e-2  # of the mean energy; the scale of a block with less may be a subnormal number
_VALUES = 1 << 22  # at a time
_MOST = 1 << 25  # of one matrix; of a larger one, rows here and there


@dataclass(frozen=True)
class Apart:
    """How far a stored matrix is from its source, relative to it, and the factors of its blocks.

    Attributes:
        low, high: the least and the largest factor; ``rows`` has theirs.
    """

    matrix: float
    low: float = 1.0
    high: float = 1.0
    rows: tuple[int, int] = (0, 0)


def check_rounding(source: ModelView, artifact: ModelView, types: Mapping[str, str]) -> Verdict | None:
    """The finding; ``None`` where nothing is quantized.

    Args:
        artifact: what is stored, decoded, under the source's names.
        types: ggml types by canonical name.
    """
    beside = {tensor.name: tensor.data for tensor in source}
    faults: list[str] = []
    furthest: dict[str, float] = {}
    for tensor in artifact:
        kind, there = types.get(tensor.name), beside.get(tensor.name)
        if kind not in LIMITS or there is None or there.matrix_shape[1] != tensor.data.matrix_shape[1]:
            continue
        found = apart(there, tensor.data, ggml_type(kind).block)
        furthest[kind] = max(furthest.get(kind, 0.0), found.matrix)
        if fault := _fault(found, LIMITS[kind]):
            faults.append(f"{tensor.name} ({kind}) {fault}")
    if not furthest:
        return None
    data = {"furthest": {kind: round(share, 4) for kind, share in sorted(furthest.items())}}
    if faults:
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        return Verdict(
            Check.ROUNDING, Status.FAIL, "; ".join(faults[:2]) + more, {**data, "faults": faults[:20]}
        )
    words = ", ".join(f"{kind} {percent(share)}" for kind, share in data["furthest"].items())
    return Verdict(
        Check.ROUNDING, Status.PASS, f"as near to the source as types round, at most {words}", data
    )


def apart(source: LogicalTensor, stored: LogicalTensor, block: int) -> Apart:
    """How far ``stored`` is from ``source``, of the same columns: all rows, or some of a large matrix.

    Args:
        block: values of its type's blocks.
    """
    import torch

    columns = stored.matrix_shape[1]
    width, part = (max(block, _PART), _PART) if columns % max(block, _PART) == 0 else (columns, columns)
    sums: list[torch.Tensor] = []
    for start, stop in _spans(min(source.matrix_shape[0], stored.matrix_shape[0]), columns):
        wanted = read_rows(source, start, stop).float().view(-1, width // part, part)
        there = read_rows(stored, start, stop).float().view_as(wanted)
        size = there.square().sum(2)
        factor = torch.where(size > 0, (there * wanted).sum(2) / size, 0.0).median(1).values
        rows = torch.arange(start, stop).repeat_interleave(columns // width)
        moved, energy = ((there - wanted).square().sum((1, 2)), wanted.square().sum((1, 2)))
        sums.append(torch.stack([moved.double(), energy.double(), factor.double(), rows.double()]))
    moved, energy, factor, rows = torch.cat(sums, 1)
    if not float(energy.sum()):
        return Apart(float(moved.sum() > 0))
    seen = energy > _FAINT * energy.mean()
    factor, rows = factor[seen], rows[seen]
    low, high = int(factor.argmin()), int(factor.argmax())
    return Apart(
        float(moved.sum() / energy.sum()) ** 0.5,
        float(factor[low]),
        float(factor[high]),
        (int(rows[low]), int(rows[high])),
    )


def _spans(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """All rows a few megabytes at a time; of a large matrix every so manieth span."""
    count = max(1, _VALUES // columns)
    step = count * max(1, rows * columns // _MOST)
    return ((start, min(rows, start + count)) for start in range(0, rows, step))


def _fault(found: Apart, most: float) -> str:
    """In words; empty where there is none."""
    if not found.matrix <= most:
        return f"is {percent(found.matrix)} of its size from the source; its type rounds by {percent(most)}"
    for factor, row in ((found.low, found.rows[0]), (found.high, found.rows[1])):
        if not FACTORS[0] <= factor <= FACTORS[1]:
            return f"has a block in row {row} that is nearest to the source times {factor:.2f}"
    return ""
