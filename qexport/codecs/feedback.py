"""Error feedback: what rounding one column got wrong, the columns after it make up for.

A matrix is rounded column by column. What a product loses is not the sum of the columns' errors: inputs go
together, so an error at one column can be taken back at another that is driven alike. With ``H = E[x x^T]``
the loss of a row with errors ``d`` is ``d H d^T``. Let ``H = R R^T`` with ``R`` upper triangular; then

    d H d^T = sum_c R_cc^2 * (d_c + sum_{i < c} d_i * R_ic / R_cc)^2

so column ``c`` is best rounded not from ``w_c`` but from ``w_c`` plus what the errors before it ask of it:
their sum, weighted with the **reach** ``R_ic / R_cc``. That is GPTQ (https://arxiv.org/abs/2210.17323) in the
form of LDLQ (https://arxiv.org/abs/2307.13304, which shows that they are the same): no matrix is inverted.

Types come into it with their own scales: those of a block, or of a group, are searched when its first column
is reached, on what its columns have become, by the search that importance has in that type. So whatever reads
the file reads it as before: only other codes stand in it, and scales that suit them.

Columns of a unit (that which has scales of its own) come by falling importance, so that those which matter
most have most columns left to make up for them; units stay in their order. What inputs a text did not show
is not known: ``H`` is damped with a part of its mean diagonal. And what columns have in common is known the
less the fewer tokens there were, while their own sizes are known soon: what is off the diagonal is shrunk
(:func:`shrunk`). Without that, as many tokens as columns do harm.

Afterwards **descent**: once more over all columns, each rounded again to the best there is given all
others', by the undamped ``H``. The loss cannot rise. Rows do not know of each other.

:class:`Feedback` is prepared once a matrix (:func:`prepare`); :mod:`qexport.codecs.feedback_columns` has the
loops, and each family of types its module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qexport.codecs.contract import Blocks, Known, MlxAffine, Nvfp4, StoredType
from qexport.errors import UsageProblem

if TYPE_CHECKING:
    import numpy as np
    import torch


DAMPING = 0.1
"""Of the mean diagonal, added to all of it."""


@dataclass(frozen=True, eq=False)
class Feedback:
    """How the columns of a matrix make up for each other's errors.

    Attributes:
        order: int64 ``(columns,)``: columns in the order in which they are rounded; units lie together.
        reach: float32 ``(columns, columns)`` in that order: row ``c`` holds, for each column before ``c``,
            what part of its error ``c`` takes back. Nothing on the diagonal and beyond.
        coupling: likewise what the errors of all others ask of ``c`` when it is rounded again; ``None``: it
            is rounded once.
    """

    order: np.ndarray = field(repr=False)
    reach: np.ndarray = field(repr=False)
    coupling: np.ndarray | None = field(default=None, repr=False)


def unit_of(stored: StoredType) -> int | None:
    """How many columns of the type are given scales together; ``None`` where it knows no feedback."""
    if isinstance(stored, Blocks):
        return 256 if stored.name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS") else None
    if isinstance(stored, MlxAffine):
        return stored.group
    return 16 if isinstance(stored, Nvfp4) and stored.scales == "mse" else None


def given(known: Known) -> Feedback:
    """The feedback that an encoder is called for. Raises UsageProblem: there is none."""
    if known.feedback is None:
        raise UsageProblem("error feedback needs the product of a matrix' inputs")
    return known.feedback


def shrunk(product: torch.Tensor, tokens: int) -> torch.Tensor:
    """A mean over so many tokens with what it says of pairs of columns shrunk, in place: by half where there
    were as many tokens as columns."""
    own = product.diagonal().clone()
    product.mul_(tokens / (tokens + len(product)))
    product.diagonal().copy_(own)
    return product


def prepare(
    product: torch.Tensor, unit: int, *, damping: float = DAMPING, descend: bool = True
) -> Feedback | None:
    """What a product of inputs means for a matrix whose columns have scales ``unit`` at a time.

    Args:
        product: ``E[x x^T]``, ``(columns, columns)``, on any device; columns as the matrix has them.
        unit: from :func:`unit_of`; columns are a multiple of it.

    Returns:
        ``None`` where nothing is driven, so that nothing can be made up for.
    """
    import torch

    diagonal = torch.diagonal(product)
    mean = float(diagonal.double().mean())
    if not 0 < mean < float("inf"):
        return None
    inside = torch.argsort(diagonal.view(-1, unit), dim=1, descending=True, stable=True)
    order = (inside + torch.arange(0, len(product), unit, device=product.device)[:, None]).view(-1)
    ordered = product[order][:, order]
    damped = ordered.double()
    damped.diagonal().add_(damping * mean)
    # Upper triangular times its transpose: the usual factor of the matrix turned around.
    lower = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1).T
    del damped
    reach = (lower / torch.diagonal(lower)[:, None]).tril_(-1)
    coupling = None
    if descend:
        own = torch.diagonal(ordered)
        coupling = torch.where(own > 0, 1 / own, 0)[:, None] * ordered
        coupling.fill_diagonal_(0)
    return Feedback(order.cpu().numpy(), _table(reach), None if coupling is None else _table(coupling))


def _table(values: torch.Tensor) -> np.ndarray:
    import torch

    table: np.ndarray = values.to("cpu", torch.float32).contiguous().numpy()
    return table
