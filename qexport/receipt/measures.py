"""The figures that artifacts are compared by, each with one definition and, where it is a mean, its error.

Positions are those that were scored: of a held-out text cut into windows, the second half of every window but
for its last token. Neighbouring positions err alike, so a standard error comes from the means of blocks of
about 64 neighbours (:func:`qexport.verification.blocks.block_error`), not from single positions.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    @property
    def span(self) -> tuple[float, float]:
        """Two standard errors to either side."""
        return self.value - 2 * (self.error or 0.0), self.value + 2 * (self.error or 0.0)


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


USUAL_DRAFTS = 3
"""Most drafts of a verification where nobody says otherwise: llama.cpp's own default."""


@dataclass(frozen=True)
class Drafting:
    """What an MTP head's drafts come to, made over a text in chains as runtimes make them.

    Of ``acceptance``, ``argmax`` and ``sampled`` the first is of one draft, the second of two, and so on,
    usually to four. Errors are those of blocks of about 64 neighbours, as of every mean here.

    Attributes:
        positions: places behind which it drafted.
        acceptance: share of the drafts so many tokens ahead that are the trunk's own first choice, where the
            text is what was drafted before.
        argmax: tokens per verification of a greedy decoder that walks over the text and drafts the head's
            first choices, at most so many at a time: what llama.cpp should come to at that n-max.
        sampled: tokens per verification where at most so many drafts are drawn from the head's distribution
            and tested against the trunk's, at temperature 1 (vLLM, SGLang).
        domains: the same of each domain of the text (code, prose, ...), which have none themselves.
    """

    positions: int
    acceptance: tuple[Estimate, ...]
    argmax: tuple[Estimate, ...]
    sampled: tuple[Estimate, ...]
    domains: Mapping[str, Drafting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.acceptance) == len(self.argmax) == len(self.sampled) > 0:
            raise ValueError("these are no figures of a head")

    @property
    def usual(self) -> Estimate:
        """Tokens per verification, greedy, with as many drafts as are usual, or as there are."""
        return self.argmax[:USUAL_DRAFTS][-1]

    @property
    def usual_sampled(self) -> Estimate:
        """Likewise, where drafts are drawn."""
        return self.sampled[:USUAL_DRAFTS][-1]


@dataclass(frozen=True)
class Measures:
    """What was measured; ``None``: it was not.

    Attributes:
        positions: predictions that were compared.
        same_top1: share of them where the likeliest token is the source's.
        perplexity_ratio: perplexity over the source's.
        routing_flips: tokens that are sent to other experts, over the same positions.
        head: what the MTP head's drafts come to, by its own trunk, over the same text and excerpts of every
            domain.
        source_head: the same of the source's head by its own trunk.
        drafts, acceptance, source_acceptance: of these the count, and the shares one token ahead.
        agreement: share of the tokens that the runtime generated which the source would have chosen too,
            of ``agreement_tokens``.
    """

    positions: int | None = None
    kld: Kld | None = None
    same_top1: Estimate | None = None
    perplexity_ratio: Estimate | None = None
    routing_flips: Flips | None = None
    head: Drafting | None = None
    source_head: Drafting | None = None
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
