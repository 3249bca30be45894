"""What is known of a model's numbers, under canonical tensor names; and what has to be.

A plan says of a tensor which kinds of evidence it needs (:class:`Need`). Some kinds are collected beforehand,
by running the model on text or from a file (:class:`Evidence`); others the pass finds out itself, from a look
at the rows right before they are encoded, and lets go when its step is done. Whoever encodes does not know
which: it gets numbers. Columns and matrices are in the order of the checkpoint; names, orders and files of
other programs (llama.cpp's imatrix) are translated where they come in and go out.

A kind is added by a member here, a provider (an observer of the streamed pass, or ``qexport.onepass.needs``),
and a field of ``qexport.codecs.contract.Known``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class Kind(StrEnum):
    """What can be known of a tensor; each is a table with a row for each of its matrices."""

    INPUT_SQUARES = "mean squared inputs"  # float32 (matrices, columns)
    OUTPUT_GRADIENTS = "mean squared output gradients"  # float32 (matrices, rows), per token of the text
    JOINT = "how output gradients and inputs go together"  # float32 (matrices, 1), 1 if independent
    HEAD_INPUTS = "mean squared inputs of the output matrix"  # float32 (1, columns); weighs no encoder
    LOOKUPS = "how often rows are looked up"  # float32 (1, rows), shares
    LOOKUP_GRADIENTS = "mean squared gradients of what is looked up"  # float32 (1, columns)
    LARGEST = "largest magnitude"  # float64 (matrices,); found by the pass
    INPUT_PRODUCTS = "mean products of inputs"  # (matrices, columns, columns); held while a layer is written
    # Found by the pass that goes along: float64 (matrices,), every token shown to every expert; float64 (1,)
    # of all matrices together, tokens sent where the model sends them.
    INPUT_LARGEST = "largest magnitude of inputs"
    SENT_LARGEST = "largest magnitude of inputs that are sent there"


@dataclass(frozen=True)
class Need:
    """A kind of evidence, of which tensors: several where they share what follows from it."""

    kind: Kind
    of: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Tables by kind and canonical name."""

    tables: Mapping[Kind, Mapping[str, np.ndarray]] = field(default_factory=dict, repr=False)

    def of(self, kind: Kind, name: str) -> np.ndarray | None:
        """What is known of the tensor, ``None`` where nothing is."""
        return self.tables.get(kind, {}).get(name)

    def needed(self, kind: Kind, name: str) -> tuple[Need, ...]:
        """The need of the tensor ``name``, none where it could not be met."""
        return () if self.of(kind, name) is None else (Need(kind, (name,)),)


NOTHING = Evidence()
