"""What is stored beside the source's weights, matrix by matrix: what rounding explains, and nothing else.

Running a model tells a damaged matrix from rounding only where it moves what is said, and of a mixture of
experts a few tokens see each expert. So rows of every matrix, of each expert alone, are read from both and
compared. The error is that of the numbers, relative to the source's:

    error = |stored - source| / |source|        size = <stored, source> / |source|^2

Measured on a trained mixture of 8 experts, the worst of some 200 matrices: NVFP4 0.098, MXFP4 0.127, MLX 4
bits 0.114, Q4_K 0.088, Q5_K 0.036, Q6_K 0.022, FP8 0.028, Q8_0 0.007; limits are two to four times that.
Planted there: two experts exchanged 1.22, the router's rows in another order 1.40, the halves of the head's
projection swapped 1.44, a gate of zeros 1, a scale half or four times of what it should be 0.5 and 3,
scales of FP8's tiles transposed 0.055. Agreement and divergence passed all of them, so few tokens go to an
expert. Below 3 bits rounding itself comes near, and the size tells.

Artifacts are read by qexport's own readers: what writing and reading have wrong alike is for runtimes, for
other libraries (:mod:`qexport.verification.readers`) and for parity with peers to find.

Whoever rescales or rotates a model before quantizing it (AWQ, SmoothQuant, QuaRot) changes its norms along
with its matrices: then no matrix is the source's, and nothing is said here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import matrix_shape
from qexport.errors import InputError
from qexport.families.roles import EXPERT_ROLES, NORM_ROLES
from qexport.onepass.rows import read_rows
from qexport.receipt.verification import Check, Status, Verdict
from qexport.sizes import counted
from qexport.verification.judge import skipped

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.checkpoint.tensors import LogicalTensor
    from qexport.families.view import ModelTensor, ModelView


_LIMITS = {16: 0.01, 8: 0.05, 6: 0.1, 5: 0.15, 4: 0.35, 3: 0.5, 2: 0.75, 1: 0.9}  # by bits, at least
_RUNS, _RUN = 4, 8  # of rows that are read of a large matrix
_WHOLE = 1 << 20  # values of a matrix that is no expert's up to which all of it is read
_NAMED = 20  # faults that a finding lists


@dataclass(frozen=True)
class Compared:
    """One matrix, vector, or expert's matrix beside the source's.

    Attributes:
        bits: of a stored code.
        norm: whether it is a norm's.
        error, size: as above; of a vector, whose norms may be stored about one, relative to one a number at
            least.
    """

    name: str
    bits: int
    norm: bool
    error: float
    size: float

    @property
    def limit(self) -> float:
        """The error that rounding to so many bits does not reach."""
        return next(limit for bits, limit in _LIMITS.items() if bits <= self.bits)

    @property
    def sound(self) -> bool:
        """Whether rounding explains the difference."""
        return self.error <= self.limit and abs(self.size - 1) <= self.limit / 2

    def __str__(self) -> str:
        grown = f", {self.size:.2f} times the source's" if abs(self.size - 1) > self.limit / 2 else ""
        return f"{self.name} is off by {self.error:.1%}{grown}; at most {self.limit:.0%} expected"


def check_weights(artifact: Opened, source: ModelView) -> Verdict | None:
    """The finding; ``None`` where the two have no tensor in common."""
    try:
        found = list(compare_weights(artifact, source))
    except InputError as error:
        return skipped(Check.WEIGHTS, error.message)
    return judge_weights(found)


def judge_weights(found: list[Compared]) -> Verdict | None:
    """The judgement on what was compared."""
    if not found:
        return None
    faults = [each for each in found if not each.sound]
    worst = {bits: max(each.error for each in found if each.bits == bits) for bits in {e.bits for e in found}}
    data = {
        "compared": len(found),
        "error": {str(bits): worst[bits] for bits in sorted(worst)},
        "faults": [str(each) for each in faults[:_NAMED]],
    }
    if faults and {each.norm for each in faults} == {True, False}:
        words = "norms and matrices are not the source's: rescaled before it was quantized, or damaged"
        return skipped(Check.WEIGHTS, words, **data)
    if faults:
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        return Verdict(Check.WEIGHTS, Status.FAIL, "; ".join(map(str, faults[:2])) + more, data)
    most = ", ".join(f"{error:.1%} in {bits} bits" for bits, error in sorted(worst.items()))
    many = counted(len(found), "matrix is", "matrices are")
    words = f"{many} the source's as far as rounding goes, off by at most {most}"
    return Verdict(Check.WEIGHTS, Status.PASS, words, data)


def compare_weights(artifact: Opened, source: ModelView) -> Iterator[Compared]:
    """Every matrix that both have, each expert's alone. Raises InputError: one of them cannot be read."""
    theirs = {tensor.name: tensor.data for tensor in source}
    for tensor in artifact.view():
        other = theirs.get(tensor.name)
        if other is None or tensor.shape[1:] != other.shape[1:]:
            continue
        yield from _of_tensor(artifact, tensor, other)


def _of_tensor(artifact: Opened, tensor: ModelTensor, other: LogicalTensor) -> Iterator[Compared]:
    stack = tensor.role in EXPERT_ROLES and len(tensor.shape) == 3
    if stack and tensor.shape != other.shape:
        return
    # An embedding may have rows beyond the last token, or be without those of the source.
    rows = min(tensor.data.matrix_shape[0], other.matrix_shape[0])
    height = tensor.shape[-2] if stack else rows
    for number in range(rows // height):
        start = number * height
        name = f"{tensor.name}[{number}]" if stack else tensor.name
        weight = artifact.weights.get(next(iter(tensor.data.rows(start, start + 1))).name)
        if weight is None:
            continue
        error, size = _apart(tensor.data, other, _places(start, height, tensor.shape, stack=stack))
        yield Compared(name, weight.bits, tensor.role in NORM_ROLES, error, size)


def _places(start: int, height: int, shape: tuple[int, ...], *, stack: bool) -> list[tuple[int, int]]:
    """The rows to read."""
    if height <= _RUNS * _RUN or (not stack and height * matrix_shape(shape)[1] <= _WHOLE):
        return [(start, start + height)]
    first = [start + run * (height - _RUN) // (_RUNS - 1) for run in range(_RUNS)]
    return [(place, place + _RUN) for place in first]


def _apart(mine: LogicalTensor, theirs: LogicalTensor, places: list[tuple[int, int]]) -> tuple[float, float]:
    """Error and size over these rows."""
    wrong = energy = product = 0.0
    for start, stop in places:
        one, other = (read_rows(each, start, stop).double() for each in (mine, theirs))
        wrong += float((one - other).square().sum())
        energy += float(other.square().sum())
        product += float((one * other).sum())
    if not math.isfinite(wrong):
        return math.inf, math.nan  # said where numbers are looked at, too
    floor = float(mine.numel) if len(mine.shape) == 1 else 0.0
    if not energy + floor:
        return (math.inf if wrong else 0.0), 1.0
    return math.sqrt(wrong / (energy + floor)), (product + floor) / (energy + floor)
