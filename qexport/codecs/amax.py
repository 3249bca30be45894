"""The largest magnitude of matrices, found while their rows pass by in any order and from any thread.

FP8 with one scale for a tensor and NVFP4's global scale both follow from it, so all rows have to be seen
before the first is encoded. Matrices that runtimes fuse (q, k and v; gate and up) share one survey and with
it a scale. Values that are not finite are passed over: the pass reports them, and a scale made of them would
only hide where they are.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from qexport.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


class AmaxSurvey:
    """A :class:`~qexport.formats.plan.Survey` of ``matrices`` matrices below each other.

    Attributes:
        matrices: how many there are: the experts of a stack, or 1.
        rows_per_matrix: rows of each; with one matrix it does not matter, and tensors of different heights
            may share the survey.
    """

    def __init__(self, matrices: int = 1, rows_per_matrix: int | None = None) -> None:
        if matrices < 1 or (matrices > 1 and not rows_per_matrix):
            raise UsageProblem(f"a survey of {matrices} matrices with {rows_per_matrix} rows each")
        self.matrices = matrices
        self.rows_per_matrix = rows_per_matrix
        self._largest = [0.0] * matrices
        self._lock = Lock()

    def observe(self, rows: torch.Tensor, first_row: int) -> None:
        """Look at ``(n, columns)`` rows in bfloat16, float16 or float32.

        Args:
            rows: the values.
            first_row: the place of their first in its tensor, all matrices counted through.

        Raises:
            UsageProblem: another dtype, or rows beyond the last matrix.
        """
        from qexport.codecs.largest import largest_in

        for matrix, start, stop in self.parts(first_row, len(rows)):
            found = largest_in(rows[start:stop])
            with self._lock:
                self._largest[matrix] = max(self._largest[matrix], found)

    def parts(self, first_row: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Which of ``count`` rows from ``first_row`` on belong to which matrix: ``(matrix, start, stop)``.

        Raises:
            UsageProblem: there are rows beyond the last matrix.
        """
        start = 0
        while start < count:
            matrix, inside = divmod(first_row + start, self.rows_per_matrix or 1 << 62)
            stop = min(count, start + (self.rows_per_matrix or count) - inside)
            if self.matrices == 1:
                matrix, stop = 0, count
            if matrix >= self.matrices:
                raise UsageProblem(f"row {first_row + start} is beyond the {self.matrices} matrices")
            yield matrix, start, stop
            start = stop

    def amax(self, matrix: int) -> float:
        """The largest magnitude that was seen in ``matrix``; 0 for zeros, and where nothing was seen."""
        return self._largest[matrix]
