"""Mixtures of experts: how many tokens an artifact's routers send elsewhere than the source's do.

A router takes the best few of many scores, so a small error may exchange an expert for another one, and what
comes of the token jumps. In small mixtures this is most of the divergence that is left at four bits and more.

A token counts in a layer where the set of its experts is another, however little weight the exchanged one
has. Flips of early layers make flips of later ones: each layer's share is that of the model as it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.receipt.measures import Flips, LayerFlips
from qexport.verification.blocks import block_error

if TYPE_CHECKING:
    from qexport.verification.text_run import TextRun


def routing_flips(source: TextRun, artifact: TextRun, *, first: int | None = None) -> Flips | None:
    """The flips over the positions whose predictions are compared; ``None`` where nothing is routed.

    Args:
        first: the first position of a chunk that counts; half of the chunk by default.
    """
    import numpy as np

    shared = sorted(source.routes.keys() & artifact.routes.keys())
    if not shared:
        return None
    first = source.tokens.shape[1] // 2 if first is None else first
    counted = np.s_[:, first:-1]
    layers, total = [], np.zeros(source.tokens[counted].shape)
    for layer in shared:
        flipped = (source.routes[layer] != artifact.routes[layer]).any(-1)[counted]
        layers.append(LayerFlips(layer, float(flipped.mean()), block_error(flipped)))
        total += flipped
    mean = total / len(shared)
    return Flips(float(mean.mean()), block_error(mean), tuple(layers))
