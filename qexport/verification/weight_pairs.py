"""What is stored beside what it was made of, matrix by matrix: how far apart, and what rounding explains.

Running a model tells a damaged matrix from rounding only where it moves what is said, and of a mixture of
experts a few tokens see each expert. So every number is read from both and compared, of each expert alone.
The error is relative to the source's numbers:

    error = |stored - source| / |source|        size = <stored, source> / |source|^2

Measured on a trained mixture of 8 experts, the worst of some 200 matrices: NVFP4 0.098, MXFP4 0.127, MLX 4
bits 0.114, Q4_K 0.088, Q5_K 0.036, Q6_K 0.022, FP8 0.028, Q8_0 0.007; limits are two to four times that.
Planted there: two experts exchanged 1.22, the router's rows in another order 1.40, the halves of the head's
projection swapped 1.44, a gate of zeros 1, a scale half or four times of what it should be 0.5 and 3,
scales of FP8's tiles transposed 0.055. Agreement and divergence passed all of them, so few tokens go to an
expert. Below 3 bits rounding itself comes near, and the size tells.

What is wrong with a block alone is lost in a matrix of millions. So each run of 128 columns of a row (of
fewer, where that does not divide it) is looked at by itself, beside the mean run of its row, so that silent
runs do not speak:

    error of a run = |stored - source| / sqrt(|source|^2 + that of the mean run + 0.001 of all rows' mean)

Twice its scale is an error of 0.7 in a mean run, up to 1 in a louder one. Rounding, the worst run of
SmolLM2 (135 M, with importance) and of numbers with outliers (benchmarks/source_weights.py): Q8_0 0.016 and
0.014, Q6_K 0.13 and 0.18, Q5_K 0.19 and 0.12, Q4_K 0.25 and 0.24, IQ4_XS 0.28 and 0.33, NVFP4 0.17 and
0.11, MLX 4 bits 0.20 and 0.16, Q3_K 0.27 and 0.36, IQ3 0.64 and 0.64, IQ2 0.99 and 1.0, IQ1_S 0.76 and 2.2.
So a doubled superblock is seen down to 4 bits; of 3 bits one of two and a half times its size, of 2 bits of
four, of 1 bit of five times.

And what is wrong everywhere may be little anywhere:

    drift = |mean(stored - source)| / root mean square of (stored - source)
    spread = standard deviation of the sizes of 32 columns each, weighted by |source|^2

A zero point that is off by one moves all of its group the same way: errors of 0.28 to 0.40 in 4 bits and 0.02
in 8, a drift of 0.94 where rounding has at most 0.07. Scales of other groups: errors of 0.17 to 0.26 in 4
bits, a spread of 0.14 to 0.26 where rounding has at most 0.04 (a trained hybrid of 9 M; GPTQ and rounded
integers, Q4_0, IQ4_XS, Q4_K, NVFP4, MXFP4, MLX).

Error feedback (GPTQ) moves errors to columns that matter less, on purpose: it makes those of numbers larger,
and of what comes out smaller. A hybrid with loud rows and columns, whose worst matrix was off by 0.15 in 4
bits, was off by 0.47 then, and its worst run by 0.77 for 0.13. So limits are twice as wide where it was used,
or may have been; sizes of its 32 columns had a spread of up to 0.12.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qexport.families.roles import EXPERT_ROLES, NORM_ROLES, Role
from qexport.onepass.execute import default_threads
from qexport.onepass.rows import read_rows

if TYPE_CHECKING:
    import torch

    from qexport.artifacts.artifact import Opened
    from qexport.checkpoint.tensors import LogicalTensor
    from qexport.codecs.apart import Apart
    from qexport.families.view import ModelTensor, ModelView


_LIMITS = {16: 0.01, 8: 0.05, 6: 0.1, 5: 0.15, 4: 0.35, 3: 0.5, 2: 0.75, 1: 0.9}  # by bits, at least
_RUN_LIMITS = {16: 0.05, 8: 0.3, 6: 0.45, 5: 0.45, 4: 0.55, 3: 0.9, 2: 1.5, 1: 2.5}
_OF_TOKENS = frozenset({Role.TOKEN_EMBD, Role.OUTPUT, Role.MTP_EMBED, Role.MTP_OUTPUT})
_DRIFT, _SPREAD = 0.5, 0.1
_SPREAD_FED = 0.13
_NOT_FED = 8  # bits, from which on there is nothing to be gained
_WIDEST = 0.9  # of all numbers: another matrix is off by more
_FAINT = 1e-3  # of the mean run of all rows: what is below is nothing
_TOGETHER = 1 << 20  # values that are read at a time


@dataclass(frozen=True)
class Compared:
    """One matrix, vector, or expert's matrix beside the source's.

    Attributes:
        bits: of a stored code.
        norm: whether it is a norm's.
        error, size: as above; of a vector, whose norms may be stored about one, relative to one a number at
            least.
        worst: the run with the largest error; ``None``: a vector.
        drift, spread: as above; 0 of a vector.
        rounded: whether nothing but rounding was done, and no error feedback.
    """

    name: str
    bits: int
    norm: bool
    error: float
    size: float
    worst: WorstRun | None = None
    drift: float = 0.0
    spread: float = 0.0
    rounded: bool = True

    @property
    def limit(self) -> float:
        """The error that rounding to so many bits does not reach."""
        limit = _limit(_LIMITS, self.bits)
        return max(limit, min(self._wider * limit, _WIDEST))

    @property
    def run_limit(self) -> float:
        """That of a run."""
        return self._wider * _limit(_RUN_LIMITS, self.bits)

    @property
    def _wider(self) -> int:
        return 1 if self.rounded or self.bits >= _NOT_FED else 2

    @property
    def alike(self) -> bool:
        """Whether rounding explains the difference as a whole."""
        return self.error <= self.limit and abs(self.size - 1) <= self.limit / 2

    @property
    def moved(self) -> str:
        """What rounding does not leave of errors that are no larger than it leaves, in words; or empty."""
        if self.error <= self.limit / 10:  # a last digit may be wrong the same way all over
            return ""
        if self.drift > _DRIFT:
            return "nearly all of it the same way: zero points are others"
        spread = _SPREAD if self._wider == 1 else _SPREAD_FED
        return "by groups: scales are others'" if self.bits >= 4 and self.spread > spread else ""

    @property
    def sound(self) -> bool:
        """Whether rounding explains the difference, in every run as well."""
        run = 0.0 if self.worst is None else self.worst.error
        return self.alike and run <= self.run_limit and not self.moved

    def __str__(self) -> str:
        if self.alike and self.moved:
            return f"{self.name} is off by {self.error:.1%}, {self.moved}"
        if self.alike and self.worst is not None:
            return f"{self.name}: {self.worst}; at most {self.run_limit:.0%} expected of a run"
        grown = f", {self.size:.2f} times the source's" if abs(self.size - 1) > self.limit / 2 else ""
        return f"{self.name} is off by {self.error:.1%}{grown}; at most {self.limit:.0%} expected"


@dataclass(frozen=True)
class WorstRun:
    """Columns of a row, counted within its matrix, and their error."""

    error: float
    row: int
    columns: tuple[int, int]

    def __str__(self) -> str:
        first, last = self.columns[0], self.columns[1] - 1
        return f"columns {first} to {last} of row {self.row} are off by {self.error:.0%}"


def _limit(limits: Mapping[int, float], bits: int) -> float:
    return next(limit for least, limit in limits.items() if least <= bits)


@dataclass(frozen=True)
class Factors:
    """What rows are multiplied with before they are compared, float32: a number for each, for each column.

    Attributes:
        rows: ``(rows of the matrix,)``.
        columns: ``(columns,)``.
    """

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None

    def of(self, found: torch.Tensor, first: int) -> torch.Tensor:
        """``found``, rows of the matrix from ``first`` on."""
        if self.columns is not None:
            found = found.float() * self.columns
        if self.rows is not None:
            found = found.float() * self.rows[first : first + len(found), None]
        return found


@dataclass(frozen=True)
class WeightPair:
    """A matrix, vector, or expert's matrix as it is stored, and the source's.

    Attributes:
        tensor: as it is stored.
        theirs: the source's tensor of the same name.
        rows: which rows of both, first and last but one.
        expert: of a stack.
        bits: of a stored code.
        mine_by, theirs_by: factors of either.
    """

    tensor: ModelTensor
    theirs: LogicalTensor
    rows: tuple[int, int]
    bits: int
    expert: int | None = None
    mine_by: Factors = Factors()
    theirs_by: Factors = Factors()

    @property
    def norm(self) -> bool:
        return self.tensor.role in NORM_ROLES

    def parts(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Runs of rows of both, and the first one's place in the matrix."""
        (first, last), columns = self.rows, self.theirs.matrix_shape[1]
        step = max(1, _TOGETHER // columns)
        for start in range(first, last, step):
            span, place = (start, min(last, start + step)), start - first
            mine, theirs = read_rows(self.tensor.data, *span), read_rows(self.theirs, *span)
            yield place, self.mine_by.of(mine, place), self.theirs_by.of(theirs, place)

    def compared(self) -> Compared:
        """How far they are apart."""
        from qexport.codecs.apart import apart  # brings numba

        vector = len(self.tensor.shape) == 1
        floor = float(self.tensor.shape[0]) if vector else 0.0
        off, there, product, shift, sizes = 0.0, floor, floor, 0.0, 0.0
        runs = []
        for place, mine, theirs in self.parts():
            part = apart(mine, theirs)
            off += float(part.wrong.sum())
            there += float(part.energy.sum())
            product += float(part.product.sum())
            shift += float(part.shift.sum())
            sizes += float(part.sizes.sum())
            runs.append(_worst(part, place))
        error, size = _whole(off, there, product)
        drift = spread = 0.0
        if not vector and off and there and math.isfinite(error):
            count = (self.rows[1] - self.rows[0]) * self.theirs.matrix_shape[1]
            drift = abs(shift) / math.sqrt(off * count)
            spread = math.sqrt(max(0.0, sizes / there - size * size))
        worst = None if vector else max(runs, key=lambda run: run.error, default=None)
        name = self.tensor.name if self.expert is None else f"{self.tensor.name}[{self.expert}]"
        return Compared(name, self.bits, self.norm, error, size, worst, drift, spread)


def pairs_of(artifact: Opened, source: ModelView) -> Iterator[WeightPair]:
    """Every matrix and vector that both have in one size, each expert's alone."""
    theirs = {tensor.name: tensor.data for tensor in source}
    for tensor in artifact.view():
        other = theirs.get(tensor.name)
        if other is not None and _of_one_size(tensor, other):
            yield from _of_tensor(artifact, tensor, other)


def _of_one_size(tensor: ModelTensor, other: LogicalTensor) -> bool:
    """An embedding may have rows beyond the last token, or be without those of the source."""
    if tensor.role in _OF_TOKENS:
        return tensor.shape[1:] == other.shape[1:]
    return tensor.shape == other.shape


def compare(pairs: Iterable[WeightPair], *, rounded: bool = True) -> list[Compared]:
    """All of them, on all processors; ``rounded`` as of :class:`Compared`.

    Raises:
        InputError: one cannot be read.
    """
    with ThreadPoolExecutor(default_threads()) as pool:
        return [replace(found, rounded=rounded) for found in pool.map(WeightPair.compared, pairs)]


def _of_tensor(artifact: Opened, tensor: ModelTensor, other: LogicalTensor) -> Iterator[WeightPair]:
    stack = tensor.role in EXPERT_ROLES and len(tensor.shape) == 3
    rows = min(tensor.data.matrix_shape[0], other.matrix_shape[0])
    height = tensor.shape[-2] if stack else rows
    for number in range(rows // height):
        start = number * height
        weight = artifact.weights.get(next(iter(tensor.data.rows(start, start + 1))).name)
        if weight is not None:
            expert = number if stack else None
            yield WeightPair(tensor, other, (start, start + height), weight.bits, expert)


def _whole(off: float, there: float, product: float) -> tuple[float, float]:
    """Error and size."""
    if not math.isfinite(off):
        return math.inf, math.nan  # said where numbers are looked at, too
    if not there:
        return (math.inf if off else 0.0), 1.0
    return math.sqrt(off / there), product / there


def _worst(part: Apart, first: int) -> WorstRun:
    """The run with the largest error in rows from ``first`` of the matrix on."""
    import numpy as np

    beside = part.energy + part.energy.mean(1, keepdims=True) + _FAINT * part.energy.mean()
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing beside nothing
        errors = np.nan_to_num(part.wrong / beside, nan=0.0)
    row, number = divmod(int(errors.argmax()), errors.shape[1])
    columns = (number * part.run, (number + 1) * part.run)
    return WorstRun(math.sqrt(errors[row, number]), first + row, columns)
