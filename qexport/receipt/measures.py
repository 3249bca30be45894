"""The figures that artifacts are compared by, each with one definition and, where it is a mean, its error.

Positions are those that were scored: of a held-out text cut into windows, the second half of every window but
for its last token. Neighbouring positions err alike, so a standard error comes from the means of blocks of
about 64 neighbours (:func:`qexport.verification.blocks.block_error`), not from single positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_BEYOND = 10


def supported(share: float, positions: int) -> bool:
    """Whether a percentile can be told from so many positions: ten must lie beyond it.

    >>> supported(0.99, 1020), supported(0.999, 1020)
    (True, False)
    """
    return positions * (1 - share) >= _BEYOND


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; ``None``: not known."""

    value: float
    error: float | None = None


@dataclass(frozen=True)
class Kld:
    """KL divergence from the source's predictions, in nats; ``None``: too few positions to tell, or not said.

    Attributes:
        error: standard error of the mean.
    """

    mean: float
    error: float | None = None
    median: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p99_9: float | None = None
    max: float | None = None

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.mean, self.error)


@dataclass(frozen=True)
class LayerFlips:
    """Routing flips of one layer; ``error``: standard error of the share."""

    layer: int
    share: float
    error: float | None = None


@dataclass(frozen=True)
class Flips:
    """Of a mixture of experts: the share of tokens that are sent to other experts than in the source.

    Attributes:
        mean: over layers.
        error: its standard error.
    """

    mean: float
    error: float | None = None
    layers: tuple[LayerFlips, ...] = ()

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.mean, self.error)


@dataclass(frozen=True)
class Measures:
    """What was measured; ``None``: it was not.

    Attributes:
        positions: predictions that were compared.
        same_top1: share of them where the likeliest token is the source's.
        perplexity_ratio: perplexity over the source's.
        routing_flips: tokens that are sent to other experts, over the same positions.
        drafts: drafts of the MTP head that were judged over the same text, one token ahead.
        acceptance: share of them that are the trunk's own first choice.
        source_acceptance: the same of the source's head by its own trunk.
        agreement: share of the tokens that the runtime generated which the source would have chosen too,
            of ``agreement_tokens``.
    """

    positions: int | None = None
    kld: Kld | None = None
    same_top1: Estimate | None = None
    perplexity_ratio: Estimate | None = None
    routing_flips: Flips | None = None
    drafts: int | None = None
    acceptance: Estimate | None = None
    source_acceptance: Estimate | None = None
    agreement: float | None = None
    agreement_tokens: int | None = None


@dataclass(frozen=True)
class Drafts:
    """What a runtime drafted with the MTP head while it answered a few prompts: an example, no measure."""

    drafted: int
    accepted: int
    prompts: int = field(default=0)

    def __post_init__(self) -> None:
        if self.accepted > self.drafted:
            raise ValueError("more drafts are accepted than there are")

    def __str__(self) -> str:
        return f"{self.accepted} of {self.drafted}"
