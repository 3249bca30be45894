"""The layer-streamed pass with its way back: gradients of a model of any size, in the memory of two layers.

On the way forth, what enters each layer is kept for the first few thousand tokens (in a file where it is too
much). Then the head samples labels from the model's own distribution and gives the gradient of their
log-probability. Layers come in reverse, one at a time: each is run again from what entered it, and the
gradient at its output goes back to its input. That is the chain rule in pieces; the sum is exactly what the
whole model gives. Each layer is read once more than without; the output matrix twice, in slices, so that
logits of the whole vocabulary never exist.

The MTP head has labels and a loss of its own. Its gradient ends where it takes hidden states and embeddings:
what it drafts has no part in what the model says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from qexport.errors import InputError
from qexport.evidence.activations import HiddenStates
from qexport.evidence.observe import Observer, OutputGradients, Products, joint
from qexport.evidence.options import StreamOptions
from qexport.evidence.output import cap_of, capped, output_of, output_rows
from qexport.evidence.ranks import ALONE, Ranks
from qexport.evidence.sensitivity import Sensitivity, Summed
from qexport.evidence.stream import LayerStream, nobody, only
from qexport.families.roles import Role

if TYPE_CHECKING:
    import numpy as np

    from qexport.families.view import ModelTensor, ModelView
    from qexport.progress import Progress


# What a layer keeps for its way back is some hundred kilobytes a token.
_BATCH_TOKENS = {"cpu": 512, "cuda": 4096}
_HEAD_TOKENS = 4096  # at a time; the output matrix is read twice for each of them
_LOGITS = 1 << 24  # at a time: 64 MiB
# Probabilities are float32 numbers: their sum may miss one by this, and a label must lie below it.
_SURE = 1 - 1e-5


@dataclass(frozen=True)
class Returned:
    """What came back.

    Attributes:
        labels: int64 ``(chunks, tokens)``, sampled from the model at each position.
        draft_labels: likewise from the MTP head, one less in a chunk; ``None`` without a head.
    """

    sensitivity: Sensitivity
    labels: np.ndarray = field(repr=False)
    draft_labels: np.ndarray | None = field(repr=False)


class TwoWayStream(LayerStream):
    """A layer stream that also goes back.

    Args:
        at_most: tokens whose gradients are taken, from the beginning of the text: of as many chunks as it
            takes, whole ones where they are not longer than that.
        seed: of the labels. The same seed gives the same labels.
        ranks: which of several processes this is; it is given its share of the text, and what comes back is
            everybody's.
    """

    def __init__(
        self,
        view: ModelView,
        options: StreamOptions | None = None,
        *,
        at_most: int = 4096,
        seed: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(view, options)
        self.ranks = ranks
        self._at_most = at_most
        self._seed = seed

    def units(self, tokens: np.ndarray) -> int:
        """What progress counts to: the way back has batches of its own."""
        return super().units(tokens) + len(self._small_batches(*self._part(*tokens.shape))) * (
            self.view.layers + 2 + 2 * bool(self._mtp)
        )

    def kept_bytes(self, tokens: np.ndarray) -> int:
        """Bytes of hidden states that are kept for the way back."""
        chunks, length = self._part(*tokens.shape)
        return 4 * (self.view.layers + 1) * chunks * length * int(self._model.config.hidden_size)

    def run_both(
        self, tokens: np.ndarray, observer: Observer, *, text: str = "", progress: Progress | None = None
    ) -> Returned:
        """Send ``tokens`` through the model as :meth:`run` does, and gradients back.

        Args:
            text: what the tokens are called, a hash.

        Raises:
            InputError: as :meth:`run`; or a gradient is not finite.
            EnvironmentProblem: no memory or disk for the hidden states.
        """
        chunks, length = self._part(*tokens.shape)
        width, layers = int(self._model.config.hidden_size), self.view.layers
        limit = max(0, self.state_limit - 4 * tokens.size * width)
        shape = ((layers + 1) * chunks, length, width)
        with closing(HiddenStates(shape, limit=limit, folder=self.options.spill_folder)) as kept:

            def keep(layer: int, start: int, hidden: torch.Tensor) -> None:
                if start < chunks:
                    kept.write(layer * chunks + start, hidden[: chunks - start, :length])

            self.run(tokens, observer, progress=progress, entering=keep)
            with self.running():
                returned = _Way(self, tokens, (chunks, length), kept, progress).back(text, self._seed)
        return replace(returned, sensitivity=_everybodys(returned.sensitivity, self.ranks, self._device))

    def _part(self, chunks: int, size: int) -> tuple[int, int]:
        """Chunks and tokens of each that have a way back."""
        length = min(size, max(2, self._at_most))
        wanted = -(-self._at_most // length)  # of all processes, which take turns
        return min(chunks, max(0, -(-(wanted - self.ranks.rank) // self.ranks.count))), length

    def _small_batches(self, chunks: int, length: int) -> list[tuple[int, int]]:
        wanted = min(self.options.batch_tokens or 1 << 30, _BATCH_TOKENS[self._device.type])
        size = max(1, wanted // length)
        return [(start, min(chunks, start + size)) for start in range(0, chunks, size)]


class _Way:
    """One way back, from what was kept on the way forth."""

    def __init__(
        self,
        stream: TwoWayStream,
        tokens: np.ndarray,
        part: tuple[int, int],
        kept: HiddenStates,
        progress: Progress | None,
    ) -> None:
        self.stream, self.tokens, self.kept = stream, tokens, kept
        self.chunks, self.length = part
        self.ids = torch.from_numpy(tokens[: self.chunks, : self.length].astype("int64"))
        self.device = stream._device
        self.output = output_of(stream.view)
        self.batches = stream._small_batches(*part)
        self.advance = progress.advance if progress is not None else nobody
        self.gradients = OutputGradients()
        # Rounded logits would be rounded probabilities.
        self.head = Products(Observer(), wide=True)

    def back(self, text: str, seed: int) -> Returned:
        """The head, the MTP block, the norm, layers in reverse, the embedding."""
        import numpy as np

        stream = self.stream
        with closing(self._states(self.length)) as flowing:
            norm = stream._base.norm
            stream._place(norm, stream._weights([stream._named(Role.OUTPUT_NORM)]), "model.norm.")
            for start, stop in self.batches:
                flowing.write(start, norm(self._entered(stream.view.layers, start, stop)))
            labels, rows, columns, together = self._sample(
                self.output, flowing, np.random.default_rng([seed, 0])
            )
            draft = None
            if stream._mtp is not None and self.batches:
                draft = self._draft(norm, np.random.default_rng([seed, 1]))
            self._through(stream.view.layers, norm, flowing)
            norm.to("meta")
            contexts = stream._contexts(self.batches, self.length)

            def through(layer: int, module: Any) -> None:
                self._through(layer, module, flowing, [contexts, layer])

            for _ in stream._layers(through, self.gradients, backwards=True) if self.batches else ():
                pass
            embedding = self._embedding(flowing)
        tokens = self.ids.numel()
        name = stream._named(Role.TOKEN_EMBD).name
        sums = {key: value.astype(np.float32) for key, value in self.gradients.sums.items()}
        counts = {key: value[:, None].astype(np.float32) for key, value in self.gradients.counts.items()}
        output = self.output.name
        sums[output], counts[output] = rows, np.full((1, 1), tokens, np.float32)
        pairs = {key: value.cpu().numpy().astype(np.float32) for key, value in self.gradients.joint.items()}
        pairs[output] = together
        lookups = np.bincount(self.tokens.reshape(-1), minlength=self.output.shape[0])
        tables = {
            Summed.GRADIENTS: sums,
            Summed.TOKENS: counts,
            Summed.JOINT: pairs,
            Summed.HEAD_INPUTS: {output: columns},
            Summed.LOOKUP_GRADIENTS: {name: embedding},
            Summed.LOOKUPS: {name: lookups[None].astype(np.float32)},
        }
        drafted = 0 if draft is None else int(draft.size)
        found = Sensitivity(tables, tokens, drafted, (f"{text} seed {seed}",))
        return Returned(found, labels, draft)

    def _states(self, length: int) -> HiddenStates:
        shape = (self.chunks, length, self.kept.shape[2])
        return HiddenStates(shape, limit=self.stream.state_limit, folder=self.stream.options.spill_folder)

    def _entered(self, layer: int, start: int, stop: int) -> torch.Tensor:
        first = layer * self.chunks
        return self.kept.read(first + start, first + stop).to(self.device)

    def _through(self, layer: int, module: Any, flowing: HiddenStates, context: Any = None) -> None:
        """Gradients at a module's output become those at its input."""
        for start, stop in self.batches:
            args, kwargs = ((), {}) if context is None else context[0][stop - start][context[1]]
            entered = self._entered(layer, start, stop).detach().requires_grad_()
            with torch.enable_grad():
                left = only(module(entered, *args, **kwargs))
            flowing.write(start, _gradient(left, entered, flowing.read(start, stop).to(self.device)))
            self.advance(1)

    def _draft(self, norm: Any, random: np.random.Generator) -> np.ndarray:
        """The MTP block: forth, its labels, back. Its products are told."""
        stream, head = self.stream, self.stream._mtp
        assert head is not None
        contexts = stream._contexts(self.batches, self.length - 1)

        def drafted(table: ModelTensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.no_grad():
                hidden = norm(self._entered(stream.view.layers, start, stop))[:, :-1]
                following = stream._embed(self.ids[start:stop, 1:], table)
            hidden = hidden.detach().requires_grad_(torch.is_grad_enabled())
            return hidden, stream._drafted(head, following, hidden, contexts[stop - start])

        with (
            closing(self._states(self.length - 1)) as flowing,
            stream._head(head, self.gradients) as table,
        ):
            for start, stop in self.batches:
                flowing.write(start, drafted(table, start, stop)[1])
                self.advance(1)
            labels, *_ = self._sample(output_of(stream.view, head=True), flowing, random)
            for start, stop in self.batches:
                with torch.enable_grad():
                    hidden, left = drafted(table, start, stop)
                _gradient(left, hidden, flowing.read(start, stop).to(self.device))
                self.advance(1)
        return labels

    def _sample(
        self, output: ModelTensor, flowing: HiddenStates, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Labels for hidden states after the norm, which become the gradients there.

        Returns:
            labels; squared gradients of each row of the output matrix, float32 ``(1, vocabulary)``; what
            enters it, squared, float32 ``(1, width)``; and both together, ``(1, 2)``.
        """
        import numpy as np

        chunks, length, width = flowing.shape
        labels = np.zeros((chunks, length), np.int64)
        ranks = self.stream.ranks
        chances = ranks.share(random.random((chunks * ranks.count, length))) * _SURE
        rows = torch.zeros(output.shape[0], dtype=torch.float64, device=self.device)
        columns = torch.zeros(width, dtype=torch.float64, device=self.device)
        together = torch.zeros(2, dtype=torch.float64, device=self.device)
        step = max(1, _HEAD_TOKENS // length)
        for start in range(0, chunks, step):
            stop = min(chunks, start + step)
            hidden = flowing.read(start, stop).reshape(-1, width).to(self.device)
            columns += hidden.square().sum(0)
            chance = torch.from_numpy(chances[start:stop].reshape(-1)).to(self.device)
            found, gradient, returned = self._labels(output, hidden, chance, rows)
            together += joint(returned, hidden.square().sum(-1))
            labels[start:stop] = found.cpu().numpy().reshape(stop - start, length)
            flowing.write(start, gradient.view(stop - start, length, width))
        squares, inputs, pair = (
            each.cpu().numpy()[None].astype(np.float32) for each in (rows, columns, together)
        )
        return labels, squares, inputs, pair

    def _labels(
        self, output: ModelTensor, hidden: torch.Tensor, chance: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The label at which probabilities, added in the vocabulary's order, exceed ``chance``.

        Args:
            hidden: float32 ``(tokens, width)``.
            chance: float64 ``(tokens,)``, in [0, 1).
            rows: squared gradients are added to it, in slices.

        Returns:
            labels, the gradients of minus their log-probability at ``hidden``, and the sum of squares of
            those at the logits, ``(tokens,)``.
        """
        top = torch.full_like(chance, -torch.inf)
        total = torch.zeros_like(chance)
        for _, _, logits in self._logits(output, hidden):
            most = torch.maximum(top, logits.amax(-1).double())
            exponentials = torch.exp(logits - most.float()[:, None])
            total = total * torch.exp(top - most) + exponentials.sum(-1, dtype=torch.float64)
            top = most
        whole = (top + total.log()).float()[:, None]
        below = torch.zeros_like(chance)
        labels = torch.full_like(chance, -1, dtype=torch.int64)
        gradient = torch.zeros_like(hidden)
        returned = torch.zeros_like(chance)
        for first, weight, logits in self._logits(output, hidden):
            shares = torch.exp(logits - whole)
            above = below + shares.sum(-1, dtype=torch.float64)
            here = torch.nonzero((labels < 0) & (chance < above)).squeeze(1)
            added = below[here, None] + shares[here].cumsum(-1, dtype=torch.float64)
            places = (added <= chance[here, None]).sum(-1).clamp(max=shares.shape[1] - 1)
            labels[here] = first + places
            below = above
            shares[here, places] -= 1
            if cap := cap_of(self.stream.view):
                shares *= 1 - (logits / cap).square()
            squares = shares.square()
            rows[first : first + shares.shape[1]] += squares.sum(0)
            returned += squares.sum(1)
            gradient += self.head.back(shares, weight)
        if (labels < 0).any():
            raise InputError(
                "probabilities of the next token are not finite; the output matrix is damaged",
                hint="Merge again in float32, or from an earlier checkpoint.",
            )
        return labels, gradient, returned

    def _logits(
        self, output: ModelTensor, hidden: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """The vocabulary in slices: its first token, rows of the output matrix, ``(tokens, slice)``."""
        rows = output.shape[0]
        dtype = torch.float32 if self.stream.precision == "float32" else torch.bfloat16
        step = max(64, _LOGITS // len(hidden))
        for start in range(0, rows, step):
            weight = output_rows(output, start, min(rows, start + step), self.device, dtype)
            yield start, weight, capped(self.stream.view, self.head.product(hidden, weight))

    def _embedding(self, flowing: HiddenStates) -> np.ndarray:
        """Squared gradients of the rows that were looked up, before the family scales them."""
        import numpy as np

        module, width = self.stream._base.embed_tokens, flowing.shape[2]
        total = torch.zeros(width, dtype=torch.float64, device=self.device)
        for start, stop in self.batches:
            gradient = flowing.read(start, stop).to(self.device)
            each = gradient.shape[0] * gradient.shape[1]  # every token a row of its own
            looked_up = torch.nn.Parameter(torch.zeros((each, width), device=self.device))
            module.weight = looked_up
            with torch.enable_grad():
                given = module(torch.arange(each, device=self.device).view(gradient.shape[:2]))
            total += _gradient(given, looked_up, gradient).square().sum(0)
            self.advance(1)
        module.to("meta")
        return total.cpu().numpy()[None].astype(np.float32)


def _everybodys(mine: Sensitivity, ranks: Ranks, device: torch.device) -> Sensitivity:
    """The sum over processes."""
    import numpy as np

    if ranks.count == 1:
        return mine
    amounts = ranks.added({"tokens": np.array([mine.tokens, mine.draft_tokens])}, device)["tokens"]
    tables = {table: ranks.added(mine.tables[table], device) for table in Summed}
    return replace(mine, tables=tables, tokens=int(amounts[0]), draft_tokens=int(amounts[1]))


def _gradient(left: torch.Tensor, entered: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient at ``entered`` of what has ``gradient`` at ``left``."""
    (found,) = torch.autograd.grad(left, entered, gradient)
    return found
