"""Whether scales of inputs (W4A4) are there, and are those of what was measured.

A receipt of ours says how large the inputs of each matrix were on the text; then every stored scale has to be
2688 divided by that, within its rounding. What others measured nobody here knows: their scales are held to be
there and positive. What a scale does is seen where the folder is compared with its source: inputs are rounded
by it there. That what is fused has one is held with its form (``stored_form``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qexport.artifacts.input_scales import TOP, stored_input_scales
from qexport.artifacts.weights import home_of
from qexport.errors import InputError
from qexport.receipt.largest_inputs import read_inputs
from qexport.receipt.names import LARGEST_INPUTS
from qexport.receipt.store import read_receipt
from qexport.receipt.verification import Check, Status, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.weights import StoredWeight


_LARGEST = 3e38  # beyond it no dtype has a number, and 1 is stored
_ROUNDING = 2**-6  # of a quotient and its divisor, each in the activations' dtype: bfloat16 has 8 bits


def recorded(folder: Path) -> Mapping[str, Sequence[float]] | None:
    """The largest inputs that the receipt in the folder has of it; ``None``: it has none."""
    try:
        read = read_receipt(folder)
    except InputError:
        return None
    artifacts = () if read.receipt is None else read.receipt.artifacts
    found = next((found for each in artifacts if (found := each.details.get(LARGEST_INPUTS))), None)
    return None if found is None else {name: read_inputs(shown) for name, shown in found.items()}


def check_input_scales(
    artifact: Opened, largest: Mapping[str, Sequence[float]] | None = None
) -> Verdict | None:
    """The finding; ``None``: neither the config nor a tensor speaks of activations in four bits.

    Args:
        largest: by canonical name of the tensor, the largest inputs of its matrices: one, or one for each.
    """
    scales = list(stored_input_scales(artifact))
    count = sum(scale is not None for _, scale in scales)
    if not count and not _declared(artifact):
        return None
    problems = [
        f"{weight.module}: {why}" for weight, scale in scales if (why := _wrong(weight, scale, largest))
    ]
    data: dict[str, Any] = {"scales": count, "measured": largest is not None, "problems": problems[:50]}
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        return Verdict(Check.INPUT_SCALES, Status.FAIL, "; ".join(problems[:3]) + more, data)
    told = "; no record of how large inputs were" if largest is None else ", each that of the largest input"
    words = f"{count} scales of inputs{told}"
    return Verdict(Check.INPUT_SCALES, Status.PASS, words, data)


def _declared(artifact: Opened) -> bool:
    return artifact.layout.stored_type(artifact).startswith("W4A4")


def _wrong(weight: StoredWeight, scale: float | None, largest: Mapping[str, Sequence[float]] | None) -> str:
    """What is wrong with the scale of the weight's inputs, in words; empty: nothing."""
    if scale is None:
        return "no scale of its inputs is there"
    if not 0 < scale < math.inf:
        return f"the scale of its inputs is {scale:g}"
    if largest is None:
        return ""
    home, expert = home_of(weight.name)
    table = largest.get(home)
    if not table:
        return "there is no record of how large its inputs were"
    seen = table[(expert or 0) % len(table)]
    wanted = TOP / seen if seen > 0 else math.inf
    if wanted >= _LARGEST:  # what either library stores of nothing but zeros
        wanted = TOP / 6 if "weight_scale_2" in weight.parts else 1.0
    if abs(scale / wanted - 1) <= _ROUNDING:
        return ""
    return f"the scale of its inputs is {scale:g}, of the largest one ({seen:g}) {wanted:g}"
