"""What a head is tuned to: the trunk's own distribution, as the runtime will hold it against the head's.

- **argmax**: the runtime drafts the head's first choice. Half of the divergence from the trunk, half of that
  from the trunk sharpened (temperature 0.5): the second pulls the first choice over, the first keeps the rest
  of the distribution where it was. Hard labels would do more harm than good to the rest.
- **sampling**: drafts are drawn from the head and tested against the trunk. Divergence first; then, as soon
  as the distributions overlap, what counts itself: ``1 - a1``, ``1 - a1 a2``, ..., ``a = sum(min(p, q))``.
- **both**: plain divergence, which is good for either and best for none.

Depths weigh 0.6 to the power of their number: a second draft counts only where the first was right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from qexport.headtune.logits import Logits
    from qexport.headtune.options import Mode


_DECAY = 0.6
_SHARP = 0.5


def divergence(trunk: torch.Tensor, head: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """From the trunk's distribution, sharpened by ``temperature``, to the head's: ``(positions,)``."""
    known = (trunk / temperature).log_softmax(-1)
    return (known.exp() * (known - head.log_softmax(-1))).sum(-1)


def depth_weights(depth: int) -> list[float]:
    """What each depth weighs; they sum to one.

    >>> [round(weight, 3) for weight in depth_weights(3)]
    [0.51, 0.306, 0.184]
    """
    weights = [_DECAY**ahead for ahead in range(depth)]
    return [weight / sum(weights) for weight in weights]


def loss_of(
    mode: Mode, late: bool, trunk: torch.Tensor, heads: Sequence[torch.Tensor], counts: torch.Tensor
) -> torch.Tensor:
    """The sum over positions of the loss of their drafts.

    Args:
        late: the second half of the training.
        trunk: the trunk's logits, for each anchor's first draft and for ``depth - 1`` tokens more.
        heads: the head's logits at each depth, ``(anchors, vocabulary)``.
        counts: for each depth and anchor what its loss is multiplied with, ``(depth, anchors)``.
    """
    anchors = len(heads[0])
    told = [trunk[ahead : ahead + anchors] for ahead in range(len(heads))]
    total = trunk.new_zeros(())
    if mode == "sampling" and late:
        accepted = trunk.new_ones(anchors)
        for likely, head, weight in zip(told, heads, counts, strict=True):
            accepted = accepted * torch.minimum(likely.softmax(-1), head.softmax(-1)).sum(-1)
            total = total + (weight * (1 - accepted)).sum()
        return total
    for likely, head, weight, share in zip(told, heads, counts, depth_weights(len(heads)), strict=True):
        each = divergence(likely, head)
        if mode == "argmax":
            each = 0.5 * each + 0.5 * divergence(likely, head, _SHARP)
        total = total + share * (weight * each).sum()
    return total


def sliced(
    mode: Mode,
    late: bool,
    vocabulary: Logits,
    final: torch.Tensor,
    heads: Sequence[torch.Tensor],
    counts: torch.Tensor,
) -> tuple[float, list[torch.Tensor]]:
    """The loss of a batch and its gradient at the head's states, with logits of a slice of anchors at a time.

    Args:
        final: the trunk's states, ``(chunks, chunk, width)``.
        heads: the head's at each depth, ``(chunks, anchors, width)``.
        counts: ``(chunks, depth, anchors)`` for those anchors that have teachers for every depth.
    """
    depth, anchors = counts.shape[1:]
    gradients = [torch.zeros_like(head) for head in heads]
    total = 0.0
    for row in range(len(final)):
        for start, stop in vocabulary.slices(anchors):
            wanted = counts[row, :, start:stop]
            if not bool(wanted.any()):
                continue
            with torch.no_grad():
                trunk = vocabulary.logits(final[row, start + 1 : stop + depth])
            leaves = [head[row, start:stop].detach().requires_grad_() for head in heads]
            loss = loss_of(mode, late, trunk, [vocabulary.trained(leaf) for leaf in leaves], wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            for gradient, leaf in zip(gradients, leaves, strict=True):
                if leaf.grad is not None:
                    gradient[row, start:stop] = leaf.grad
    return total, gradients
