"""A sample of what is stored, read by other libraries: their numbers must be ours.

Everything that is measured here (divergence, the head) goes through qexport's own decoders. Were one of them
wrong in the way in which its encoder is, nothing else would show it where no runtime runs the artifact. So
a few rows of matrices of every form, of trunk, head and output, go through the dequantizers of the libraries
that define the format (:mod:`qexport.verification.libraries`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from qexport.codecs.contract import FP8_TILE
from qexport.errors import InputError
from qexport.receipt.verification import Check, Status, Verdict
from qexport.sizes import counted
from qexport.verification.judge import skipped
from qexport.verification.libraries import LIBRARIES, Library

if TYPE_CHECKING:
    import torch

    from qexport.artifacts.packed import PackedMatrix


_EACH = 4  # matrices of a form and a part of the model
_NEAR = 1e-5  # of a row's largest number: products in float32, in whatever order


def check_readers(
    matrices: Iterable[PackedMatrix], libraries: Sequence[Library] = LIBRARIES
) -> Verdict | None:
    """The finding; ``None`` where nothing is packed. Passed is what of every form somebody read."""
    sample = list(_sample(matrices))
    if not sample:
        return None
    told = _Told(libraries)
    for number, matrix in enumerate(sample):
        slabs = -(-matrix.height // FP8_TILE)
        start = (number % (matrix.rows // matrix.height)) * matrix.height + number % slabs * FP8_TILE
        stop = min(start + FP8_TILE, start // matrix.height * matrix.height + matrix.height)
        told.compare(matrix, start, stop)
    return told.finding(len(sample))


def _sample(matrices: Iterable[PackedMatrix]) -> Iterable[PackedMatrix]:
    """Of each form, in trunk, head, embedding and output: a few from the first to the last."""

    def key(matrix: PackedMatrix) -> tuple[str, str]:
        return str(matrix.form), matrix.name.partition(".")[0]

    for _, group in groupby(sorted(matrices, key=key), key):
        found = list(group)
        places = {round(part * (len(found) - 1) / max(1, _EACH - 1)) for part in range(_EACH)}
        yield from (found[place] for place in sorted(places))


class _Told:
    """What the libraries made of it so far."""

    def __init__(self, libraries: Sequence[Library]) -> None:
        self._libraries = libraries
        self._read: dict[str, set[str]] = {}  # forms by library
        self._absent: dict[str, Library] = {}
        self._broken: dict[str, str] = {}
        self._faults: list[str] = []
        self._unread: set[str] = set()

    def compare(self, matrix: PackedMatrix, start: int, stop: int) -> None:
        """The same rows by us and by everybody who knows the form."""
        try:
            rows, ours = matrix.stored(start, stop), matrix.decode(start, stop)
        except InputError:  # a file that cannot be read is a finding of its own
            return
        form = matrix.form.kind if matrix.form.per == "block" else str(matrix.form)
        read = False
        for library in self._libraries:
            if not library.knows(rows):
                continue
            if not library.installed:
                self._absent[form] = library
                continue
            try:
                theirs = library.read(rows)
            except Exception as error:  # noqa: BLE001 another version may have moved anything
                self._broken[library.name] = f"{type(error).__name__}: {error}"[:200]
                continue
            read = True
            self._read.setdefault(library.name, set()).add(form)
            if fault := _apart(ours, theirs):
                self._faults.append(f"{library.name} reads {matrix.name} ({form}) otherwise: {fault}")
        if not read:
            self._unread.add(form)

    def finding(self, count: int) -> Verdict:
        by = {library.name: library for library in self._libraries}
        read = {f"{name} {by[name].version}": sorted(forms) for name, forms in self._read.items()}
        unread = sorted(self._unread)
        data = {"matrices": count, "read": read, "unread": unread, "faults": self._faults[:20]}
        if self._broken:
            data["broken"] = self._broken
        if self._faults:
            more = f" (and {len(self._faults) - 2} more)" if len(self._faults) > 2 else ""
            return Verdict(Check.READERS, Status.FAIL, "; ".join(self._faults[:2]) + more, data)
        if not read:
            return skipped(Check.READERS, self._why_not(unread), **data)
        sample = counted(count, "matrix", "matrices")
        words = " and ".join(read) + f": the same numbers in a sample of {sample}"
        if unread:
            left = f"{', '.join(unread)}: {self._why_not(unread)}; the rest: {words}"
            return skipped(Check.READERS, left, **data)
        return Verdict(Check.READERS, Status.PASS, words, data)

    def _why_not(self, unread: Sequence[str]) -> str:
        if self._broken:
            return "; ".join(f"{name} cannot be asked ({why})" for name, why in self._broken.items())
        found = [self._absent[form] for form in unread if form in self._absent]
        if found:
            names = " or ".join(dict.fromkeys(library.name for library in found))
            return f"{names} is not installed (pip install 'qexport[{found[0].extra}]')"
        return "no library that is asked here knows the form"


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """In words, where two readings differ; empty where they do not."""
    import torch

    if ours.shape != theirs.shape:
        return f"{tuple(theirs.shape)} numbers, not {tuple(ours.shape)}"
    near = (ours - theirs).abs() <= _NEAR * ours.abs().amax(1, keepdim=True)
    wrong = ~(near | (torch.isnan(ours) & torch.isnan(theirs)))
    if not wrong.any():
        return ""
    row, column = (int(place) for place in wrong.nonzero()[0])
    there, here = float(theirs[row, column]), float(ours[row, column])
    return f"{int(wrong.sum())} of {wrong.numel()} numbers, the first {there:.6g} where {here:.6g} is stored"
