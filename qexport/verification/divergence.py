"""How far an artifact's predictions are from the source's: Kullback-Leibler divergence over a held-out text.

At every position of the second half of each chunk (as llama-perplexity counts, so that numbers can be
compared) the source gives a distribution p over the vocabulary and the artifact q; the divergence is
sum p * (log p - log q), in nats. The mean says what is lost on the whole, the tail where it hurts: a mean of
0.01 with a 99th percentile of 1 is a model that now and then says something else. Same-top is the share of
positions where both would say the same word. Both means have a standard error
(:mod:`~qexport.verification.blocks`); a percentile is given where at least ten positions lie beyond it.

Both are run by the same code in float32 on the same text, so what differs is weights. Left out: what the
runtime's own arithmetic adds (activations rounded to 8 bits in llama.cpp, a cache in fewer bits).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError
from qexport.receipt.measures import Estimate, Kld, supported
from qexport.verification.blocks import block_error

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qexport.evidence.activations import HiddenStates
    from qexport.verification.text_run import TextRun


_PERCENTILES = {"p90": 90.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}


class NotFinite(InputError):
    """What was computed is no number: a weight of one of the two is damaged."""


def require_finite(label: str, what: str, values: torch.Tensor) -> None:
    """Raises NotFinite, naming the model, where any of ``values`` is NaN or infinite."""
    import torch

    if broken := int((~torch.isfinite(values)).sum()):
        raise NotFinite(
            f"{label}: {broken} of {values.numel()} {what} are not finite",
            hint="A weight is damaged: its scales or codes are NaN or infinite.",
        )


@dataclass(frozen=True)
class Divergence:
    """What was measured; divergences in nats.

    Attributes:
        positions: how many predictions were compared.
        error, same_top_error: standard errors of the two means.
        same_top: share of them where the likeliest token is the same.
        loss_error: standard error of the difference of the two losses, position by position.
        source_loss, loss: mean negative log-probability of the text's own next token (of the one after, for
            heads).
        vocabulary: tokens that both know; others are left out.
        each: the divergence at every position, ``(windows, positions)``.
    """

    positions: int
    mean: float
    error: float | None
    median: float
    p90: float | None
    p95: float | None
    p99: float | None
    p99_9: float | None
    max: float
    same_top: float
    same_top_error: float | None
    source_loss: float
    loss: float
    loss_error: float | None
    vocabulary: int
    each: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def perplexity_ratio(self) -> float:
        """The artifact's perplexity over the source's; infinity where no float is as large."""
        try:
            return math.exp(self.loss - self.source_loss)
        except OverflowError:
            return math.inf

    @property
    def perplexity(self) -> Estimate:
        """The ratio with its standard error, which follows from that of its logarithm."""
        ratio = self.perplexity_ratio
        return Estimate(ratio, None if self.loss_error is None else ratio * self.loss_error)

    @property
    def kld(self) -> Kld:
        """The divergence alone."""
        tail = {name: getattr(self, name) for name in (*_PERCENTILES, "median", "max")}
        return Kld(self.mean, self.error, **tail)

    def to_json(self) -> dict[str, Any]:
        said = asdict(replace(self, each=None))
        del said["each"]
        return {**said, "perplexity_ratio": self.perplexity_ratio}


def gained(plain: Divergence, better: Divergence) -> Estimate:
    """By how much ``better`` is closer to the source than ``plain``, in nats: the mean of differences.

    Both stumble over the same passages, so the error of the difference is far smaller than theirs.

    Raises:
        InputError: they were not measured over the same positions.
    """
    if plain.each is None or better.each is None or plain.each.shape != better.each.shape:
        raise InputError("divergences over different positions cannot be compared one by one")
    difference = plain.each - better.each
    return Estimate(float(difference.mean()), block_error(difference))


def compare_runs(
    source: TextRun, artifact: TextRun, *, first: int | None = None, head: bool = False
) -> Divergence:
    """Compare two runs over the same text.

    Args:
        first: the first position of a chunk that counts; half of the chunk by default.
        head: compare what the MTP heads say of the token after next, not what the models say of the next.

    Raises:
        InputError: they are not over the same text, or there are no two heads to compare.
        NotFinite: a logit of either is NaN or infinite.
    """
    import torch

    from qexport.evidence.output import output_of, output_rows
    from qexport.verification.logits import Tally, batches, logits, picked, slices, vocabulary

    if source.text.ids.shape != artifact.text.ids.shape or (source.text.ids != artifact.text.ids).any():
        raise InputError(f"{source.view.label} and {artifact.view.label} were run over different texts")
    tokens, ours = _over(source, head)
    _, theirs = _over(artifact, head)
    chunks, chunk = tokens.shape
    first = chunk // 2 if first is None else first
    device, rows = source.device, min(vocabulary(source.view), vocabulary(artifact.view))
    # The last position predicts a token that the text does not have; it is run along and not counted.
    count = chunks * (ours.shape[1] - first)
    one, other = Tally(count), Tally(count)
    excess = torch.zeros(count, dtype=torch.float64)  # sum of exp(a - top) * (a - b)
    with torch.no_grad():
        for start, stop in slices(rows):
            rows_a = output_rows(output_of(source.view), start, stop, device)
            rows_b = output_rows(output_of(artifact.view), start, stop, device)
            pairs = zip(batches(ours, first, device), batches(theirs, first, device), strict=True)
            for (at, states), (_, others) in pairs:
                a, b = logits(source.view, states, rows_a), logits(artifact.view, others, rows_b)
                shares, shrink = one.add(at, a, start)
                other.add(at, b, start)
                added = (shares * (a - b)).sum(-1, dtype=torch.float64).cpu()
                excess[at] = excess[at] * shrink + added
        # The source first: what is wrong with it is not the artifact's fault.
        for run, tally in ((source, one), (artifact, other)):
            require_finite(run.view.label, "sums of logits", tally.log_sum)
        found = excess / one.mass - one.log_sum + other.log_sum
        text = torch.from_numpy(tokens.astype("int64")).clamp(max=rows - 1)
        targets = text[:, int(head) :][:, first : ours.shape[1]].roll(-1, dims=1).reshape(-1)
        losses = [
            (tally.log_sum - picked(run.view, states, first, targets, device)).view(chunks, -1)[:, :-1]
            for run, states, tally in ((source, ours, one), (artifact, theirs, other))
        ]
    inside = found.view(chunks, -1)[:, :-1]
    for run, loss in ((source, losses[0]), (artifact, losses[1])):
        require_finite(run.view.label, "log-probabilities of the text", loss)
    require_finite(artifact.view.label, "divergences", inside)
    same = (one.token == other.token).view(chunks, -1)[:, :-1]
    return _summary(inside, same, losses, rows)


def _over(run: TextRun, head: bool) -> tuple[np.ndarray, HiddenStates]:
    """Ids, and the states behind them."""
    if not head:
        return run.tokens, run.final
    if run.head is None:
        raise InputError(f"{run.view.label} has no MTP head")
    return run.head.tokens, run.head.draft


def _summary(found: torch.Tensor, same: torch.Tensor, losses: list[torch.Tensor], rows: int) -> Divergence:
    import numpy as np

    windows, agreeing = found.numpy(), same.numpy()
    values = windows.reshape(-1)
    tail = {
        key: float(np.percentile(values, percent)) if supported(percent / 100, len(values)) else None
        for key, percent in _PERCENTILES.items()
    }
    return Divergence(
        positions=len(values),
        mean=float(values.mean()),
        error=block_error(windows),
        median=float(np.median(values)),
        max=float(values.max()),
        same_top=float(agreeing.mean()),
        same_top_error=block_error(agreeing),
        source_loss=float(losses[0].mean()),
        loss=float(losses[1].mean()),
        loss_error=block_error((losses[1] - losses[0]).numpy()),
        vocabulary=rows,
        each=windows,
        **tail,
    )
