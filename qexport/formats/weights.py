"""What a model would weigh in each format, planned to the byte from headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import QexportError
from qexport.formats.registry import FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.doctor.diagnose import Diagnosis
    from qexport.formats.plan import ArtifactPlan


@dataclass(frozen=True)
class FormatSize:
    """Bytes of one format, and ``bits`` per value of what it holds."""

    format: str
    nbytes: int
    bits: float


def weights_of(diagnosis: Diagnosis) -> tuple[list[FormatSize], str | None]:
    """The weights of every format that can hold the model, and why files cannot (an unknown tokenizer, say).

    Raises:
        InputError: tensors and config do not fit together.
    """
    diagnosis.repaired.view()
    found: list[FormatSize] = []
    problem = None
    # What is not quantized first: the others are seen beside it.
    for each in sorted(FORMATS.values(), key=lambda one: bool(one.rates)):
        for name, options in each.shown.items():
            try:
                plans = each.plan(diagnosis, options)
            except QexportError as error:
                # A folder: matrices that its blocks do not fit, or a family that its runtime does not know.
                problem = error.message if each.ladder else problem
                continue
            if each.ladder:
                found += [_size(f"{name} {plan.label}", [plan]) for plan in plans]
            else:
                found.append(_size(name, plans))
    return found, problem


def _size(name: str, plans: Sequence[ArtifactPlan]) -> FormatSize:
    """Of a file, or of a folder with what is beside it."""
    shapes = (tensor.matrix_shape for plan in plans for tensor in plan.tensors)
    values = sum(rows * columns for rows, columns in shapes)
    data = sum(plan.data_size for plan in plans)
    return FormatSize(name, sum(plan.size for plan in plans), 8 * data / max(1, values))
