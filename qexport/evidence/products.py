"""How the inputs of every product go together and how large they are, known while a layer is written.

Error feedback (:mod:`qexport.codecs.feedback`) wants ``E[x x^T]`` of each matrix. For a large model these are
gigabytes a layer, so they are never stored: the layer-streamed pass stands still behind the pass that writes.
When that comes to a layer, the text goes through it once, what enters each of its products is held (in the
arithmetic's own precision; query, key and value hold the same), and products are made of it when an encoder
asks. With the next layer all of that is let go. Weights are read once more in all.

An expert's product is one of the tokens that were sent there. Where they are fewer than :data:`FLOOR` a
column, feedback would learn the text by heart; such experts are encoded without, and counted
(:attr:`InputProducts.left_out`).

The largest magnitudes of inputs (:mod:`qexport.evidence.largest_inputs`) come of the same pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

from qexport.codecs.feedback import Feedback, prepare, shrunk
from qexport.errors import InputError
from qexport.evidence.largest_inputs import LargestInputs
from qexport.evidence.observe import Latest, Observer
from qexport.evidence.store import Kind
from qexport.evidence.stream import LayerStream
from qexport.families.roles import EXPERT_ROLES, Block, Role

if TYPE_CHECKING:
    import numpy as np

    from qexport.evidence.options import StreamOptions
    from qexport.families.view import ModelView


FLOOR = 1.0
"""Tokens for each column that a matrix must have seen."""
_KEPT = 32  # of what was made of products: matrices that share one come one after another


class InputProducts:
    """The streamed pass, stepped by who writes.

    Args:
        view: the model, its data at hand.
        tokens: ids, ``(chunks, chunk)``.

    To be closed.
    """

    def __init__(self, view: ModelView, tokens: np.ndarray, options: StreamOptions | None = None) -> None:
        self._stream = LayerStream(view, options)
        output = view.find(Role.OUTPUT)
        self._moments = dict(_moments(view))
        self._experts = {tensor.name for tensor in view if tensor.role in EXPERT_ROLES}
        self._held = _Held(torch.float32 if self._stream.precision == "float32" else torch.bfloat16)
        self._largest = LargestInputs(self._held)
        self._tokens = tokens
        self._stages: Iterator[Any] | None = None
        self._now = -2  # nothing has run
        self._output = None if output is None else output.name
        # With what it was made of, so that the addresses in its key stay theirs.
        self._made: OrderedDict[Any, tuple[list[torch.Tensor], Feedback | None]] = OrderedDict()
        self._lock = Lock()

    @property
    def floor(self) -> float:
        """Tokens a column, below which there is no feedback."""
        return FLOOR

    @property
    def left_out(self) -> dict[str, tuple[int, int]]:
        """Of those tensors that had too few tokens somewhere: how many matrices, of how many."""
        found: dict[str, tuple[int, int]] = {}
        for name, counts in self._held.counts.items():
            few = sum(count < FLOOR * self._held.columns[name] for count in counts)
            if few:
                found[name] = (few, len(counts))
        return found

    def moment(self, name: str) -> int:
        """When the tensor's product is known: moments are to be asked for in their order.

        Raises:
            InputError: at no time: nothing is multiplied with it.
        """
        if name not in self._moments:
            raise InputError(f"{name} takes part in no product whose inputs could be known")
        return self._moments[name]

    def follow(
        self, names: Collection[str], largest: Collection[str] = (), sent: Collection[str] = ()
    ) -> None:
        """Products of these tensors will be asked for, and largest magnitudes of either kind; of others
        nothing is held."""
        self._held.wanted = set(names)
        self._largest.follow(largest, sent, experts=not self._experts.isdisjoint(largest))

    def reach(self, name: str) -> None:
        """Send the text as far as this tensor's layer; what was held before is let go."""
        moment = self.moment(name)
        if moment < self._now:
            raise ValueError(f"{name} is behind what is held now")
        if self._stages is None:
            self._stages = self._stream.stages(self._tokens, self._largest, final=self._final)
        while self._now < moment:
            self._held.inputs.clear()
            self._made.clear()
            next(self._stages)
            self._now += 1

    def measured(self, kind: Kind) -> Mapping[str, np.ndarray]:
        """The largest magnitudes that entered the tensors that were reached and followed for that kind,
        ``(matrices,)`` or ``(1,)``: a few numbers each, which are kept."""
        return {Kind.INPUT_LARGEST: self._largest.tables, Kind.SENT_LARGEST: self._largest.sent}[kind]

    def of(self, name: str, unit: int, columns: np.ndarray | None) -> Sequence[Feedback | None]:
        """What the products of a tensor that was reached come to, for each of its matrices, made when asked.

        Args:
            unit: columns that have scales together.
            columns: the order of the output's columns, where it is another one.
        """
        inputs = self._held.inputs.get(name, [])
        return _Lazy([partial(self._feedback, part, unit, columns) for part in inputs])

    def close(self) -> None:
        """Let go of everything."""
        self._held.inputs.clear()
        self._made.clear()
        if self._stages is not None:
            with closing(self._stages):  # type: ignore[type-var]
                self._stages = None

    def _final(self, _: int, states: torch.Tensor) -> None:
        if self._output is not None:
            self._largest.saw((self._output,), 0, 1, states.reshape(-1, states.shape[-1]))
            self._largest.settle("the last layer")

    def _feedback(self, inputs: list[torch.Tensor], unit: int, columns: np.ndarray | None) -> Feedback | None:
        key = (tuple(map(id, inputs)), unit, None if columns is None else columns.tobytes())
        with self._lock:  # who comes second takes what the first has made
            if key not in self._made:
                self._made[key] = inputs, _made(inputs, unit, columns)
                if len(self._made) > _KEPT:
                    self._made.popitem(last=False)
            return self._made[key][1]


class _Lazy(Sequence["Feedback | None"]):
    """A sequence whose items are made when they are asked for."""

    def __init__(self, make: Sequence[Callable[[], Feedback | None]]) -> None:
        self._make = make

    def __len__(self) -> int:
        return len(self._make)

    def __getitem__(self, index: Any) -> Any:
        return self._make[index]()


class _Held(Observer):
    """Holds what enters the products of those tensors that are wanted, and counts the tokens of all."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.wanted: set[str] = set()
        self.inputs: dict[str, list[list[torch.Tensor]]] = {}
        self.counts: dict[str, list[int]] = {}
        self.columns: dict[str, int] = {}
        self._dtype = dtype
        self._rounded = Latest()

    def saw(self, names: tuple[str, ...], matrix: int, matrices: int, inputs: torch.Tensor) -> None:
        for name in names:
            self.counts.setdefault(name, [0] * matrices)[matrix] += len(inputs)
            self.columns[name] = inputs.shape[1]
            if name in self.wanted:
                held = self._rounded.of(inputs, lambda: inputs.to(self._dtype, copy=True))
                self.inputs.setdefault(name, [[] for _ in range(matrices)])[matrix].append(held)

    def settle(self, label: str) -> None:
        self._rounded = Latest()


def _moments(view: ModelView) -> Iterator[tuple[str, int]]:
    """For each tensor that a product may take, after which stage of the pass its inputs are known."""
    for tensor in view:
        if tensor.block is Block.TRUNK and tensor.layer is not None:
            yield tensor.name, tensor.layer
        elif tensor.role is Role.OUTPUT:
            yield tensor.name, view.layers
        elif tensor.block is Block.MTP:
            yield tensor.name, view.layers + 1


def _made(inputs: Sequence[torch.Tensor], unit: int, columns: np.ndarray | None) -> Feedback | None:
    tokens, width = sum(map(len, inputs)), inputs[0].shape[1] if inputs else 0
    if tokens < FLOOR * width or not tokens:
        return None
    product = torch.zeros(width, width, device=inputs[0].device)
    for part in inputs:
        wide = part.float()
        product.addmm_(wide.T, wide)
    product = shrunk(product / tokens, tokens)
    if columns is not None:
        order = torch.from_numpy(columns).to(product.device)
        product = product[order][:, order]
    return prepare(product, unit)
