"""Whether the base that a tower is taken of is a relative of the model: shapes and settings do not say.

A model and what was fine-tuned from it have nearly the same matrices (cosines of their rows above 0.9); of
two models of one size that were trained apart, rows have nothing to do with each other. A head of such a base
loads everywhere, and guesses another model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.doctor.finding import Finding
from qexport.errors import InputError

if TYPE_CHECKING:
    import torch

    from qexport.checkpoint.tensors import LogicalTensor
    from qexport.doctor.subject import Subject


_MATRICES, _ROWS = 8, 4
_LEAST = 0.5


def strangers(subject: Subject, base: Subject, tower: str) -> tuple[Finding, ...]:
    """A note where the trunks of the two are no relatives; nothing where they are, or cannot be compared.

    Args:
        tower: ``mtp`` or ``vision``.
    """
    likeness = likeness_of(subject, base)
    if likeness is None or likeness >= _LEAST:
        return ()
    label = base.checkpoint.label
    what = (
        f"the trunk of {label} is another: rows of its matrices have a cosine of {likeness:.2f} with those"
        f" here (fine-tunes: above 0.9), so its {_TOWERS[tower]} was trained with another model"
    )
    repair = "Name the model that was fine-tuned, or measure what it is worth before it is published."
    return (Finding(f"{tower}.stranger", "note", what, (), repair),)


_TOWERS = {"mtp": "head", "vision": "tower"}


def likeness_of(subject: Subject, base: Subject) -> float | None:
    """The median cosine of a sample of rows; ``None`` where one is not local, or nothing is in both."""
    import torch

    names = sorted(
        name
        for name, tensor in subject.tensors.items()
        if len(tensor.shape) > 1
        and name not in base.head
        and name not in subject.vision
        and name in base.tensors
        and base.tensors[name].shape == tensor.shape
    )
    found: list[torch.Tensor] = []
    try:
        for name in names[:: max(1, len(names) // _MATRICES)]:
            one, other = (_sample(each.tensors[name]) for each in (subject, base))
            found.append(torch.cosine_similarity(one, other, dim=-1))
    except InputError:
        return None
    likeness = float(torch.cat(found).nanmedian()) if found else float("nan")
    return None if likeness != likeness else likeness


def _sample(tensor: LogicalTensor) -> torch.Tensor:
    """A few rows spread over it, float32."""
    import torch

    rows, _ = tensor.matrix_shape
    starts = sorted({rows * each // _ROWS for each in range(_ROWS)})
    pieces = [piece for start in starts for piece in tensor.rows(start, start + 1)]
    read = [piece.checkpoint.read_rows(piece.name, piece.start, piece.stop) for piece in pieces]
    return torch.cat([each.float().flatten(1) for each in read])
