"""What a head drafts over a text, anchor by anchor, and what a runtime would have made of it.

Of every anchor and depth three things are known: whether the head's first choice is the trunk's, whether it
is the token that the text goes on with, and how much of the two distributions lies under both,
``a = sum(min(p, q))``: so often does a runtime accept that draws drafts from ``q`` and tests them
(https://arxiv.org/abs/2211.17192). What these come to in a runtime:

- drafts that are the head's first choice: a decoder **walks** over the text. At an anchor all drafts are
  accepted up to the first that is wrong, the trunk adds a token of its own, and the next anchor is behind it.
  Tokens over verifications, for greedy decoding; with the text's own tokens in the trunk's place, for text
  that was sampled as the runtime samples.
- drafts that are drawn: ``1 + E[a1 + a1 a2 + ...]``, over all anchors.

Drafts of one document are alike; so standard errors come from documents, whose number is that of what is
independent, and two heads are compared document by document.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from qexport.receipt.measures import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import torch

    from qexport.evidence.chained import Embedded, HeadChain
    from qexport.headtune.logits import Logits
    from qexport.headtune.text import Chunked
    from qexport.progress import Progress


DEPTH = 4
"""How far ahead drafts are judged."""
_CHUNK_TOKENS = 4096  # that go through the head at once
_CONTEXT = 8  # one part in so many of a chunk is read before anything is judged
_BLOCK = 64  # neighbouring anchors that are taken for one where there are few documents


@dataclass(frozen=True)
class Ratio:
    """A sum over a sum, by document.

    Attributes:
        above, below: float64, one for each document.
    """

    above: np.ndarray = field(repr=False)
    below: np.ndarray = field(repr=False)

    @property
    def value(self) -> float:
        """The ratio of the sums; NaN where there is nothing."""
        below = float(self.below.sum())
        return float(self.above.sum()) / below if below else math.nan

    @property
    def influence(self) -> np.ndarray:
        """How much each document moves the ratio."""
        below = float(self.below.sum())
        return (self.above - self.value * self.below) / below if below else self.above * 0

    @property
    def error(self) -> float | None:
        """The ratio's standard error; ``None`` of fewer than two documents."""
        return _error(self.influence, self.below > 0)

    def gain(self, before: Ratio) -> tuple[float, float | None]:
        """How much larger it is than ``before``, over the same documents, and the standard error of that."""
        there = (self.below > 0) | (before.below > 0)
        return self.value - before.value, _error(self.influence - before.influence, there)

    @property
    def estimate(self) -> Estimate:
        """Both."""
        return Estimate(self.value, self.error)

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "error": self.error}


def _error(influence: np.ndarray, there: np.ndarray) -> float | None:
    count = int(there.sum())
    if count < 2:
        return None
    return math.sqrt(count / (count - 1) * float((influence**2).sum()))


@dataclass(frozen=True)
class HeadDrafts:
    """Every draft of a head over a text.

    Attributes:
        fine: bool ``(chunks, anchors)``: those that count.
        document: int likewise.
        chosen: int likewise: the token that the trunk chooses where the head's first draft is for.
        greedy: bool ``(chunks, anchors, depth)``: the head's first choice is the trunk's.
        own: likewise, the text's next token.
        overlap: float32 likewise, the sum of min(p, q).
        domains: of each document.
    """

    fine: np.ndarray = field(repr=False)
    document: np.ndarray = field(repr=False)
    chosen: np.ndarray = field(repr=False)
    greedy: np.ndarray = field(repr=False)
    own: np.ndarray = field(repr=False)
    overlap: np.ndarray = field(repr=False)
    domains: tuple[str, ...] = field(repr=False)

    def of(self, *domains: str) -> HeadDrafts:
        """Those over documents of these domains."""
        import numpy as np

        wanted = np.array([domain in domains for domain in self.domains], bool)
        return replace(self, fine=self.fine & wanted[self.document])

    def by_blocks(self) -> HeadDrafts:
        """The same with documents cut into blocks of about 64 anchors, from which errors come then: of few
        documents the spread is not known."""
        import numpy as np

        blocks = np.zeros(self.document.shape, int)
        domains: list[str] = []
        for row, documents in enumerate(self.document):
            edges = [0, *(np.flatnonzero(np.diff(documents)) + 1).tolist(), len(documents)]
            for start, stop in itertools.pairwise(edges):
                for part in np.array_split(np.arange(start, stop), max(1, round((stop - start) / _BLOCK))):
                    blocks[row, part] = len(domains)
                    domains.append(self.domains[documents[start]])
        return replace(self, document=blocks, domains=tuple(domains))

    @property
    def positions(self) -> int:
        """Anchors that count."""
        return int(self.fine.sum())

    @property
    def documents(self) -> int:
        """Documents with any."""
        import numpy as np

        return len(np.unique(self.document[self.fine]))

    @property
    def chance(self) -> float:
        """Acceptance of always drafting the one token that the trunk says most often."""
        import numpy as np

        counts = np.unique(self.chosen[self.fine], return_counts=True)[1]
        return int(counts.max(initial=0)) / max(1, self.positions)

    def acceptance(self, ahead: int) -> Ratio:
        """Share of drafts at a depth, from 1, that are the trunk's first choice."""
        return self._mean(self.greedy[..., ahead - 1])

    def shared(self, ahead: int) -> Ratio:
        """Of drafts that are drawn, the share that would be accepted at a depth."""
        return self._mean(self.overlap[..., ahead - 1])

    def walked(self, most: int, *, own: bool = False) -> Ratio:
        """Tokens per verification where the head's first choices are drafted, at most ``most`` of them."""
        import numpy as np

        right = (self.own if own else self.greedy)[..., :most]
        accepted = right.cumprod(axis=-1).sum(axis=-1)
        tokens, verifications = np.zeros((2, len(self.domains)))
        for fine, document, steps in zip(self.fine, self.document, accepted, strict=True):
            for anchor in _walk(fine, steps):
                tokens[document[anchor]] += steps[anchor] + 1
                verifications[document[anchor]] += 1
        return Ratio(tokens, verifications)

    def drawn(self, most: int) -> Ratio:
        """Tokens per verification where drafts are drawn from the head."""
        return self._mean(1 + self.overlap[..., :most].cumprod(axis=-1).sum(axis=-1))

    def _mean(self, values: np.ndarray) -> Ratio:
        import numpy as np

        where = self.document[self.fine]
        above = np.bincount(where, values[self.fine].astype(np.float64), len(self.domains))
        return Ratio(above, np.bincount(where, minlength=len(self.domains)).astype(np.float64))


def _walk(fine: np.ndarray, accepted: np.ndarray) -> list[int]:
    """The anchors at which a decoder comes to verify: behind each, what was accepted and one token more."""
    anchors, at = [], 0
    while at < len(fine):
        if not fine[at]:
            at += 1
            continue
        anchors.append(at)
        at += int(accepted[at]) + 1
    return anchors


class StatesOf(Protocol):
    """A trunk's states after its final norm, wherever they are."""

    def of(self, chunks: Sequence[int], device: Any = ...) -> torch.Tensor:
        """Float32 ``(chunks, chunk, width)``."""


def drafts_of(
    chain: HeadChain,
    vocabulary: Logits,
    text: Chunked,
    states: StatesOf,
    embedded: Embedded,
    *,
    part: slice,
    depth: int = DEPTH,
    temperature: float = 1.0,
    progress: Progress | None = None,
    first: Callable[[int, torch.Tensor], None] = lambda *_: None,
) -> HeadDrafts:
    """Run the head over the chunks of ``part``.

    Args:
        temperature: of both distributions, for :attr:`HeadDrafts.overlap`.
        progress: counts chunks.
        first: called with the number of a chunk and, of it and those behind it, what the head gives for the
            drafts one token ahead, ``(chunks, chunk - depth, width)``.
    """
    import numpy as np
    import torch

    size = text.ids.shape[1]
    anchors = size - depth - 1
    chunks = range(*part.indices(len(text.ids)))
    fine = text.anchors(depth)[part].copy()
    # Who reads a chunk from its middle knows less than a runtime does; answers have their prompt in front.
    prompted = ~text.counts[part].all(axis=1)
    fine[~prompted, : size // _CONTEXT] = False
    shape = (len(chunks), anchors, depth)
    chosen = np.zeros(shape[:2], np.int64)
    greedy, own = np.zeros(shape, bool), np.zeros(shape, bool)
    overlap = np.zeros(shape, np.float32)
    step = max(1, _CHUNK_TOKENS // size)
    for begin in range(0, len(chunks), step):
        batch = chunks[begin : begin + step]
        final = states.of(batch, chain.device)
        with torch.no_grad():
            heads = list(chain.unrolled(final, embedded.of(batch), depth))
            first(batch[0], heads[0])
            for row, chunk in enumerate(batch):
                if not fine[begin + row].any():
                    continue
                following = torch.from_numpy(text.ids[chunk].astype(np.int64)).to(chain.device)
                for start, stop in vocabulary.slices(anchors):
                    trunk = vocabulary.logits(final[row, start + 1 : stop + depth])
                    likely = (trunk / temperature).softmax(-1)
                    choice = trunk.argmax(-1)
                    chosen[begin + row, start:stop] = choice[: stop - start].cpu().numpy()
                    for ahead, head in enumerate(heads):
                        said = vocabulary.logits(head[row, start:stop], head=True)
                        draft, span = said.argmax(-1), slice(ahead, ahead + stop - start)
                        actual = following[start + ahead + 2 : stop + ahead + 2]
                        under = torch.minimum(likely[span], (said / temperature).softmax(-1)).sum(-1)
                        place = (begin + row, slice(start, stop), ahead)
                        greedy[place] = (draft == choice[span]).cpu().numpy()
                        own[place] = (draft == actual).cpu().numpy()
                        overlap[place] = under.cpu().numpy()
        if progress is not None:
            progress.advance(len(batch))
    return HeadDrafts(fine, text.document[part][:, :anchors], chosen, greedy, own, overlap, text.domains)
