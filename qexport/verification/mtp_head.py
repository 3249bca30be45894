"""The MTP head judged by running it: how often it guesses what the model says next.

A head that is broken loads like one that works: norms shifted twice, the two halves of its input exchanged,
a matrix that was never filled. What shows it is use. Over a held-out text the head drafts behind every token,
in chains, as a runtime has it (:mod:`qexport.headtune.drafts`); the trunk's own first choices and
distributions are what drafts are held against.

What is accepted depends on model and text, so the same figures of the bf16 source stand beside those of an
artifact, from the same code. Left out: the runtime's arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError
from qexport.receipt.measures import Drafting, Estimate
from qexport.verification.divergence import require_finite

if TYPE_CHECKING:
    from qexport.verification.text_run import TextRun


@dataclass(frozen=True)
class HeadScore:
    """What was measured.

    Attributes:
        chance: acceptance of always drafting the one token that the trunk says most often.
    """

    drafting: Drafting
    chance: float

    @property
    def positions(self) -> int:
        """Places behind which it drafted."""
        return self.drafting.positions

    @property
    def acceptance(self) -> float:
        """Share of drafts one token ahead that are the trunk's own first choice."""
        return self.drafting.acceptance[0].value

    @property
    def error(self) -> float:
        """Its standard error, at least that of independent drafts: of few, all may be accepted."""
        count = self.positions
        share = min(max(self.acceptance, 1 / count), 1 - 1 / count) if count > 1 else 0.5
        return max(math.sqrt(share * (1 - share) / max(1, count)), self.drafting.acceptance[0].error or 0.0)

    @property
    def estimate(self) -> Estimate:
        """Acceptance one token ahead."""
        return Estimate(self.acceptance, self.error)

    def to_json(self) -> dict[str, Any]:
        return {
            "positions": self.positions,
            "acceptance": self.acceptance,
            "error": self.error,
            "chance": self.chance,
            "tokens_per_verification": self.drafting.usual.value,
        }


def score_head(run: TextRun) -> HeadScore:
    """The head's score from a run of the model over a text.

    Raises:
        InputError: the model has no head, or the text is too short to judge it on.
        NotFinite: a logit of trunk or head is NaN or infinite.
    """
    import torch

    from qexport.headtune.figures import drafting_of

    found = run.head
    if found is None:
        raise InputError(f"{run.view.label} has no MTP head")
    drafts = found.drafts
    if not drafts.positions:
        raise InputError("the text is too short to judge an MTP head on")
    require_finite(run.view.label, "drafts", torch.from_numpy(drafts.overlap[drafts.fine]))
    return HeadScore(drafting_of(drafts), drafts.chance)
