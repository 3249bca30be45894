"""Scales of inputs that NVFP4 folders store for W4A4, whose activations are in four bits, too.

compressed-tensors stores the number that inputs are multiplied with (``input_global_scale``, 2688 for the
largest input), ModelOpt its inverse (``input_scale``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qexport.artifacts.weights import StoredWeight, home_of
from qexport.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from qexport.artifacts.artifact import Opened


TOP = 6.0 * 448.0
"""A scale times the largest input that it leaves room for: E2M1's largest level, E4M3's largest number."""


def stored_input_scales(artifact: Opened) -> Iterator[tuple[StoredWeight, float | None]]:
    """Each NVFP4 weight with the factor for its inputs; ``None``: it has none; NaN: it is not one number."""
    for weight in artifact.weights.values():
        if not isinstance(weight, StoredWeight) or not {"weight_global_scale", "weight_scale_2"} & {
            *weight.parts
        }:
            continue
        part = weight.parts.get("input_scale")
        if part is None:
            yield weight, None
            continue
        numbers = part.whole().float().view(-1).tolist()
        number = numbers[0] if len(numbers) == 1 else math.nan
        inverse = "weight_scale_2" in weight.parts
        yield weight, (1 / number if number else math.inf) if inverse else number


def input_scales(artifact: Opened) -> dict[str, np.ndarray]:
    """By canonical name of the tensor, float64 ``(matrices,)``; empty where activations stay as they are.

    Raises:
        InputError: one is no number to multiply with.
    """
    import numpy as np

    found: dict[str, dict[int, float]] = {}
    for weight, scale in stored_input_scales(artifact):
        if scale is None:
            continue
        if not 0 < scale < math.inf:
            raise InputError(f"{weight.module}: the scale of its inputs is {scale:g}")
        name, expert = home_of(weight.name)
        found.setdefault(name, {})[expert or 0] = scale
    return {name: np.array([each[at] for at in sorted(each)]) for name, each in found.items()}
