"""The MTP head judged by running it: how often it guesses what the model says next.

A head that is broken loads like one that works: norms shifted twice, the two halves of its input exchanged,
a matrix that was never filled. What shows it is use. Over a held-out text the head is given what it gets in a
runtime (the trunk's own hidden state behind the final norm, the embedding of the next token), and its first
choice for the token after next is compared with the trunk's own first choice there: this is the share of
drafts that greedy decoding would accept at depth one. The log-probability that it gives to the trunk's choice
is the finer measure.

Acceptance depends on model and text, so the same numbers of the bf16 source stand beside those of an
artifact, from the same code. Left out: chained drafts (depth two and more), sampling, and the runtime's
arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError
from qexport.verification.blocks import block_error
from qexport.verification.divergence import require_finite

if TYPE_CHECKING:
    import numpy as np

    from qexport.verification.text_run import TextRun


@dataclass(frozen=True)
class HeadScore:
    """What was measured.

    Attributes:
        positions: drafts that were judged.
        acceptance: share of them that are the trunk's own first choice.
        logprob: mean log-probability, in nats, that the head gives to that choice.
        chance: acceptance of always drafting the one token that the trunk says most often.
        error: standard error of the acceptance.
    """

    positions: int
    acceptance: float
    logprob: float
    chance: float
    error: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score_head(run: TextRun, *, first: int | None = None) -> HeadScore:
    """The head's score from a run of the model over a text.

    Args:
        first: the first position of a chunk that counts; half of the chunk by default.

    Raises:
        InputError: the model has no head.
        NotFinite: a logit of trunk or head is NaN or infinite.
    """
    import torch

    from qexport.evidence.output import output_of, output_rows
    from qexport.verification.logits import Tally, batches, logits, picked, slices, vocabulary

    if run.draft is None:
        raise InputError(f"{run.view.label} has no MTP head")
    view, device = run.view, run.device
    chunks, chunk = run.tokens.shape
    first = chunk // 2 if first is None else first
    count = chunks * (chunk - 1 - first)
    # The draft at a position and the trunk's choice at the next are for the same token.
    trunk, head = Tally(count), Tally(count)
    with torch.no_grad():
        whole, own = output_of(view), output_of(view, head=True)
        for start, stop in slices(vocabulary(view)):
            shared = output_rows(whole, start, stop, device)
            its = shared if own is whole else output_rows(own, start, stop, device)
            for tally, states, begin, rows in (
                (trunk, run.final, first + 1, shared),
                (head, run.draft, first, its),
            ):
                for at, part in batches(states, begin, device):
                    tally.add(at, logits(view, part, rows), start)
        given = picked(view, run.draft, first, trunk.token, device, head=True) - head.log_sum
    for what, values in (("trunk", trunk.log_sum), ("head", head.log_sum), ("drafts", given)):
        require_finite(view.label, f"sums of the {what}'s logits", values)
    hits = (trunk.token == head.token).view(chunks, -1).numpy()
    commonest = int(torch.bincount(trunk.token).max())
    return HeadScore(
        positions=count,
        acceptance=float(hits.mean()),
        logprob=float(given.mean()),
        chance=commonest / count,
        error=_error(hits),
    )


def _error(hits: np.ndarray) -> float:
    """By blocks, and at least that of independent drafts: of few, all may be accepted."""
    count = hits.size
    share = min(max(float(hits.mean()), 1 / count), 1 - 1 / count)
    return max(math.sqrt(share * (1 - share) / count), block_error(hits) or 0.0)
