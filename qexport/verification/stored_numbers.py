"""Every stored number that could be no number: floats, scales of every format, 8-bit floats and their scales.

One NaN among the scales of a Q8_0 makes everything that the model says NaN, or nothing at all where the token
is rare; whether a run meets it is luck. So all of them are looked at, in the bits, a few megabytes at a time:
the scales of each block of a GGUF (``d``, ``dmin``), of a folder float tensors, ``scales`` and ``biases``,
global scales, E4M3 codes and scales, E8M0 scales.

Left out: what overflows only when scales are multiplied; that shows where the model is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.receipt.verification import Check, Status, Verdict

if TYPE_CHECKING:
    import numpy as np

    from qexport.artifacts.words import Numbers, WordBlocks


_CHUNK = 4 << 20
_NAMED = 20  # faults that a finding lists


@dataclass
class _Tally:
    """What one tensor was found to hold: blocks seen, the bad ones and their first; zeros of a divisor."""

    layout: WordBlocks
    divisor: bool = False
    blocks: int = 0
    bad: int = 0
    first: int = 0
    zeros: int = 0

    def look(self, data: np.ndarray) -> None:
        """Count the bad blocks among these bytes, which are whole blocks."""
        import numpy as np

        rows = data.reshape(-1, self.layout.size)
        word = self.layout.word
        wrong = np.zeros(0, bool)
        for words in self.layout.words(rows):
            bits = words & words.dtype.type(word.mask)
            # The maximum is one vectorized pass, and nearly always the end of it.
            if len(bits) and bits.max() > word.largest:
                above = bits > word.largest
                wrong = wrong | above if len(wrong) else above
            if self.divisor:
                self.zeros += len(bits) - int(np.count_nonzero(bits))
        if len(wrong):
            self.first = self.first if self.bad else self.blocks + int(wrong.argmax())
            self.bad += int(wrong.sum())
        self.blocks += len(rows)

    def fault(self, name: str, rows: int) -> str:
        """In words, where it is; ``rows`` are the tensor's."""
        what = "values are" if self.layout.size == self.layout.word.size else "blocks have scales that are"
        row = self.first // max(1, self.blocks // max(1, rows))
        where = f"first block {self.first}, row {row}"
        return f"{name}: {self.bad} of {self.blocks} {what} NaN or infinite ({where})"


def check_numbers(stored: Iterable[Numbers], *, chunk: int = _CHUNK) -> Verdict:
    """The finding; ``chunk`` bytes are in memory at a time."""
    faults: list[str] = []
    unknown: list[str] = []
    tensors = count = 0
    for numbers in stored:
        tensors += 1
        if numbers.blocks is None:
            if numbers.unknown:
                unknown.append(f"{numbers.name} ({numbers.type_name})")
            continue
        tally = _Tally(numbers.blocks, numbers.divisor)
        try:
            for piece in numbers.pieces(chunk):
                tally.look(piece)
        except InputError as error:
            return Verdict(Check.NUMBERS, Status.FAIL, error.message)
        count += tally.blocks
        if tally.bad:
            faults.append(tally.fault(numbers.name, numbers.rows))
        if tally.zeros:
            faults.append(f"{numbers.name} is zero, and the weight is divided by it")
    data = {"tensors": tensors, "looked_at": count, "faults": faults[:_NAMED], "not_looked_at": unknown}
    if faults:
        more = f" (and {len(faults) - 3} more tensors)" if len(faults) > 3 else ""
        return Verdict(Check.NUMBERS, Status.FAIL, "; ".join(faults[:3]) + more, data)
    if unknown:
        words = f"the numbers of {len(unknown)} tensors are in no form that can be looked at: {unknown[0]}"
        return Verdict(Check.NUMBERS, Status.SKIPPED, words, data)
    words = f"{count} scales and floats of {tensors} tensors, all finite"
    return Verdict(Check.NUMBERS, Status.PASS, words, data)
