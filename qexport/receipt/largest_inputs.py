"""The largest inputs of a W4A4 artifact's matrices, as its receipt has them.

One number for a tensor where all of its matrices have the same. Of a stack of experts with numbers of their
own (256 in each of 40 layers), the least and the largest are for readers; all of them are packed in ``each``:
bfloat16, little-endian, in base64. Verification allows stored scales more than that rounds.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def shown_inputs(table: np.ndarray) -> list[float] | dict[str, Any]:
    """What a receipt has of the largest inputs of a tensor, float64 ``(matrices,)``.

    >>> shown_inputs(np.array([2.5, 2.5])), shown_inputs(np.array([0.5, 3.0]))
    ([2.5], {'least': 0.5, 'largest': 3.0, 'each': 'AD9AQA=='})
    """
    least, largest = float(table.min()), float(table.max())
    if least == largest:
        return [largest]
    bits = table.astype("<f4").view("<u4") + np.uint32(0x8000)
    packed = base64.b64encode((bits >> np.uint32(16)).astype("<u2").tobytes()).decode()
    return {"least": least, "largest": largest, "each": packed}


def read_inputs(shown: Sequence[float] | Mapping[str, Any]) -> list[float]:
    """The numbers again: one, or one for each matrix, also of receipts with lists; none where it is neither.

    >>> read_inputs(shown_inputs(np.array([0.5, 3.0]))), read_inputs({"each": "no"})
    ([0.5, 3.0], [])
    """
    try:
        if not isinstance(shown, Mapping):
            return [float(number) for number in shown]
        halves = np.frombuffer(base64.b64decode(shown["each"], validate=True), "<u2")
    except (KeyError, TypeError, ValueError):
        return []
    numbers: list[float] = (halves.astype("<u4") << np.uint32(16)).view("<f4").tolist()
    return numbers
