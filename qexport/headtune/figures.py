"""What a head comes to, in figures: of all domains and of each, with standard errors, before and after."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from qexport.headtune.drafts import DEPTH
from qexport.receipt.measures import Drafting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qexport.headtune.drafts import HeadDrafts, Ratio
    from qexport.headtune.options import Mode


ALL = "all"
"""All domains together."""
OWN = "own text"
"""Those of the user's text together."""
SURE = 2.0
"""Standard errors that a gain has to exceed."""
POINT = 0.01
"""What no domain may fall by: a point of acceptance."""


def figures(drafts: HeadDrafts, *, depth: int = 3, own: tuple[str, ...] = ()) -> dict[str, Any]:
    """Of all documents and of each domain, as receipts and ``--json`` have them; ``own``: domains that count
    together, too."""
    found = {ALL: _figures(drafts, depth)}
    if own:
        found[OWN] = _figures(drafts.of(*own), depth)
    for domain in sorted(set(drafts.domains)):
        part = drafts.of(domain)
        if part.positions:
            found[domain] = _figures(part, depth)
    return found


def _figures(drafts: HeadDrafts, depth: int) -> dict[str, Any]:
    ahead = range(1, drafts.greedy.shape[2] + 1)
    return {
        "documents": drafts.documents,
        "positions": drafts.positions,
        "acceptance": [drafts.acceptance(each).to_json() for each in ahead],
        "overlap": [drafts.shared(each).to_json() for each in ahead],
        "tokens_per_verification": {
            "n_max": depth,
            "argmax": drafts.walked(depth).to_json(),
            "own": drafts.walked(depth, own=True).to_json(),
            "sampled": drafts.drawn(depth).to_json(),
        },
    }


def drafting_of(drafts: HeadDrafts) -> Drafting:
    """As receipts of artifacts have them: for every depth, of all documents and of each domain."""
    every = sorted(set(drafts.domains))
    parts = ((domain, drafts.of(domain)) for domain in every)
    return replace(
        _drafting(drafts), domains={domain: _drafting(part) for domain, part in parts if part.positions}
    )


def _drafting(drafts: HeadDrafts) -> Drafting:
    ahead = range(1, drafts.greedy.shape[2] + 1)
    return Drafting(
        drafts.positions,
        acceptance=tuple(drafts.acceptance(each).estimate for each in ahead),
        argmax=tuple(drafts.walked(each).estimate for each in ahead),
        sampled=tuple(drafts.drawn(each).estimate for each in ahead),
    )


Way = Literal["argmax", "sampled"]
WAYS: Mapping[Mode, tuple[Way, ...]] = {
    "argmax": ("argmax",),
    "sampling": ("sampled",),
    "both": ("argmax", "sampled"),
}
"""For each mode, the figures that must gain."""


def aim_of(drafts: HeadDrafts, mode: Mode, depth: int) -> float:
    """Tokens per verification in this mode; of both, the mean."""
    found = [_way(drafts, way, depth).value for way in WAYS[mode]]
    return sum(found) / len(found)


def _way(drafts: HeadDrafts, way: Way, depth: int) -> Ratio:
    return drafts.walked(depth) if way == "argmax" else drafts.drawn(depth)


@dataclass(frozen=True)
class HeadVerdict:
    """Whether the new head is taken, and why (not).

    Attributes:
        gains: for each figure that must gain: by how much, and the standard error of that.
        falls: acceptance of the next token, the change of each domain.
    """

    accepted: bool
    reason: str
    gains: Mapping[str, tuple[float, float | None]]
    falls: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        gains = {way: {"value": gain, "error": error} for way, (gain, error) in self.gains.items()}
        return {"accepted": self.accepted, "reason": self.reason, "gains": gains, "change": dict(self.falls)}


def judged(
    before: HeadDrafts, after: HeadDrafts, mode: Mode, depth: int, domains: Iterable[str]
) -> HeadVerdict:
    """The new head against the old one, over the same documents.

    Args:
        domains: those whose documents decide on the gain; no domain at all may fall.
    """
    gains: dict[str, tuple[float, float | None]] = {}
    one, other = before.of(*domains), after.of(*domains)
    for way in WAYS[mode]:
        gains[way] = _way(other, way, depth).gain(_way(one, way, depth))
    falls = {}
    for domain in sorted(set(before.domains)):
        old, new = before.of(domain), after.of(domain)
        if old.positions:
            falls[domain] = _next(new, mode) - _next(old, mode)
    reasons = []
    for drawn, (gain, error) in gains.items():
        if error is None:
            reasons.append("too few documents to tell a gain from chance")
        elif not gain > SURE * error:
            reasons.append(
                f"{drawn} drafts: {gain:+.3f} tokens per verification is no more than {SURE:g} standard "
                f"errors of {error:.3f}"
            )
    for domain, change in falls.items():
        if not change >= -POINT:
            reasons.append(f"acceptance in {domain} changes by {change:+.1%}")
    return HeadVerdict(not reasons, "; ".join(reasons), gains, falls)


def _next(drafts: HeadDrafts, mode: Mode) -> float:
    """Acceptance one token ahead, as the runtime drafts; of both, the worse."""
    found = {"argmax": drafts.acceptance(1).value, "sampled": drafts.shared(1).value}
    return min(found[way] for way in WAYS[mode])


def table(found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and rows of :func:`figures`, for people: one row of the user's text that is one domain."""
    columns = ("domain", "positions", *(f"ahead {each}" for each in range(1, DEPTH + 1)))
    rows = []
    for domain, row in found.items():
        if domain not in (ALL, OWN) and row == found.get(OWN):
            continue
        per = row["tokens_per_verification"]
        shares = [_text(each, share=True) for each in row["acceptance"]]
        tokens = [_text(per[way]) for way in ("argmax", "own", "sampled")]
        rows.append([domain, str(row["positions"]), *shares, *tokens])
    return (*columns, "argmax drafts", "on the text itself", "sampled drafts"), rows


def _text(value: Mapping[str, Any], *, share: bool = False) -> str:
    number, error = value["value"], value["error"]
    if not math.isfinite(number):
        return "-"
    words = f"{100 * number:.1f}" if share else f"{number:.3f}"
    if error is None:
        return words
    return f"{words} ± {100 * error:.1f}" if share else f"{words} ± {error:.3f}"
