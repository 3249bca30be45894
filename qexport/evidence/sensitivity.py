"""How sensitive a model's predictions are to each row of its weights, and so what an error in them costs.

Let ``g`` be the gradient of the log-probability of a label **sampled from the model itself**, at the output
of a product. ``G_r = E[g_r^2]`` is the diagonal of the true Fisher information, the Hessian of the divergence
between the model and what becomes of it. With the mean squared inputs ``X_c``, an error ``d`` of a
weight costs, in nats per token,

    KL ~ 1/2 * sum_r G_r * sum_c X_c * d_rc^2

and tensors add up. Where a token's gradient is large because its input is small (behind a norm), the two
means cannot know it, so ``G`` is scaled by ``E[|g|^2 |x|^2] / (E[|g|^2] E[|x|^2])``, one number a matrix.

A token that is not sent to an expert has no gradient there: ``G`` is a mean over all tokens of the text,
``X`` over those that came. An embedding has no product. Its row ``v`` is taken with frequency ``f_v``, so it
costs ``1/2 * sum_v f_v * sum_c G_c * d_vc^2``: the same form. A tied embedding costs both.

:func:`weights_of` gives what an allocator needs of a tensor, :func:`predicted_kld` and
:func:`closed_form_kld` what a stored type would cost it. ``docs/quality.md`` says how well they predict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.evidence.store import Evidence, Kind

if TYPE_CHECKING:
    import numpy as np


class Summed(StrEnum):
    """What is summed over tokens, by tensor; the words are suffixes in an importance matrix.

    None of them ends in ``.in_sum``, ``.in_sum2`` or ``.counts``: llama.cpp reads past others.
    """

    GRADIENTS = "out_grad2"  # squared gradients of output rows (matrices, rows)
    TOKENS = "out_grad2_counts"  # tokens that each matrix saw (matrices, 1)
    JOINT = "out_grad2_joint"  # per token: squared gradient times squared input; squared input (matrices, 2)
    HEAD_INPUTS = "head_sum2"  # squared inputs of the output matrix, which has no in_sum2 (1, columns)
    LOOKUP_GRADIENTS = "lookup_grad2"  # squared gradients of the embedding's result (1, columns)
    LOOKUPS = "lookup_counts"  # how often each row of the embedding was taken (1, rows)


Tables = Mapping[Summed, Mapping[str, "np.ndarray"]]


@dataclass(frozen=True)
class Sensitivity:
    """Sums over a text, by tensor name.

    Attributes:
        tables: float32, two dimensions each.
        tokens: over how many tokens gradients were summed; lookups are counted over all of the text.
        draft_tokens: likewise for the MTP head, whose labels are its own; 0 where there is none.
        texts: for each text that was used, the hash of its tokens and the labels' seed.
    """

    tables: Tables = field(repr=False)
    tokens: int
    draft_tokens: int
    texts: tuple[str, ...]


def added(parts: Sequence[tuple[str, Sensitivity]]) -> Sensitivity | None:
    """The sum of several sensitivities of one model, each with the label of its file; ``None`` of none.

    Raises:
        InputError: two of them differ in the size of a tensor: they belong to different models.
    """
    import numpy as np

    if not parts:
        return None
    tables: dict[Summed, dict[str, np.ndarray]] = {}
    for label, part in parts:
        for table, rows in part.tables.items():
            total = tables.setdefault(table, {})
            for name, values in rows.items():
                before = total.get(name)
                if before is not None and before.shape != values.shape:
                    raise InputError(
                        f"{label}: {name}.{table} is {values.shape}, not {before.shape} as in {parts[0][0]}",
                        hint="These importance matrices were made for different models.",
                    )
                total[name] = values if before is None else (before + values).astype(np.float32)
    every = [part for _, part in parts]
    return Sensitivity(
        tables,
        sum(part.tokens for part in every),
        sum(part.draft_tokens for part in every),
        tuple(dict.fromkeys(text for part in every for text in part.texts)),
    )


@dataclass(frozen=True, eq=False)
class Weights:
    """How much an error at each place of a tensor weighs: the product of its row's and its column's.

    Attributes:
        rows: float32 ``(matrices, rows)``.
        columns: float32 ``(matrices, columns)``.
    """

    rows: np.ndarray = field(repr=False)
    columns: np.ndarray = field(repr=False)


def reached(weights: Weights) -> np.ndarray:
    """Of each matrix, whether a token reached it; of the others nothing is known."""
    import numpy as np

    return np.logical_and(weights.rows.any(axis=1), weights.columns.any(axis=1))


def weights_of(evidence: Evidence, name: str) -> tuple[Weights, ...]:
    """What errors of the tensor with this canonical name weigh; several add up (a tied embedding has two).

    Empty where no sensitivity is known: then nothing can be said of it, least of all that it costs nothing.
    """
    gradients = evidence.of(Kind.OUTPUT_GRADIENTS, name)
    inputs = evidence.of(Kind.HEAD_INPUTS, name)
    if inputs is None:
        inputs = evidence.of(Kind.INPUT_SQUARES, name)
    lookups = evidence.of(Kind.LOOKUPS, name), evidence.of(Kind.LOOKUP_GRADIENTS, name)
    joint = evidence.of(Kind.JOINT, name)
    if gradients is not None and joint is not None:
        gradients = gradients * joint
    pairs = ((gradients, inputs), lookups)
    return tuple(
        Weights(rows, columns) for rows, columns in pairs if rows is not None and columns is not None
    )


def filled(evidence: Evidence) -> Evidence:
    """The evidence with importance for what has none: the output matrix, and the embedding by its gradients.

    For files whose types are chosen; plain ones are written as the peers write them.
    """
    squares = dict(evidence.tables.get(Kind.INPUT_SQUARES, {}))
    for kind in (Kind.OUTPUT_GRADIENTS, Kind.LOOKUPS):
        for name in evidence.tables.get(kind, {}):
            parts = weights_of(evidence, name)
            if parts and name not in squares:
                weighed = (part.rows.mean(axis=1, keepdims=True) * part.columns for part in parts)
                squares[name] = sum(weighed, start=parts[0].columns * 0)
    return Evidence({**evidence.tables, Kind.INPUT_SQUARES: squares})


def predicted_kld(weights: Sequence[Weights], errors: np.ndarray) -> float:
    """Nats per token that errors cost.

    Args:
        weights: of the tensor, by :func:`weights_of`.
        errors: decoded minus source, ``(matrices, rows, columns)`` or one matrix, as the checkpoint has it.
    """
    import numpy as np

    squares = np.square(errors.reshape(-1, *errors.shape[-2:]), dtype=np.float32)
    return 0.5 * sum(
        float(np.einsum("mr,mc,mrc->", part.rows, part.columns, squares, optimize=True)) for part in weights
    )


CLOSED_FORM = {
    "Q2_K": 0.065,
    "Q3_K": 0.0194,
    "Q4_K": 0.00454,
    "Q5_K": 0.00115,
    "Q6_K": 0.000275,
    "Q8_0": 2.7e-5,
}
"""Stored type -> weighted squared error relative to the weighted squares of the values themselves."""


def closed_form_kld(weights: Sequence[Weights], values: np.ndarray, type_name: str) -> float:
    """What the type would cost a tensor of these ``values``, without encoding it; KeyError: no constant."""
    return CLOSED_FORM[type_name] * predicted_kld(weights, values)
