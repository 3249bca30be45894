"""Two models beside each other: for each type that both have, the same figures of both, and who is ahead.

Ahead is who differs by more than two standard errors of the difference: what is nearer may be the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.receipt.measures import USUAL_DRAFTS, Estimate
from qexport.receipt.text import speed, with_error
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qexport.receipt.types import Artifact
    from qexport.report.report import Pair


@dataclass(frozen=True)
class Line:
    """A figure of both; ``ahead``: ``ours``, ``theirs`` or empty."""

    what: str
    ours: str
    theirs: str
    ahead: str = ""


@dataclass(frozen=True)
class Beside:
    """What stands on the card of a type; ``differing``: what was not made alike."""

    artifact: Artifact
    lines: tuple[Line, ...]
    differing: tuple[str, ...]


def beside(pairs: Sequence[Pair]) -> tuple[Beside, ...]:
    """A card for each type that both have."""
    return tuple(Beside(pair.ours, tuple(_lines(pair.ours, pair.theirs)), pair.differing) for pair in pairs)


def short_names(ours: str, theirs: str) -> tuple[str, str]:
    """Names without their owners, where that leaves two.

    >>> short_names("alice/Tuned-27B", "Qwen/Qwen3.6-27B"), short_names("a/M", "b/M")
    (('Tuned-27B', 'Qwen3.6-27B'), ('a/M', 'b/M'))
    """
    one, other = ours.rpartition("/")[2], theirs.rpartition("/")[2]
    return (one, other) if one != other and one and other else (ours, theirs)


def _lines(ours: Artifact, theirs: Artifact) -> Iterator[Line]:
    yield Line("Size", size_text(ours.size), size_text(theirs.size))
    one, other = ours.measures, theirs.measures
    divergence = (one.kld.estimate if one.kld else None, other.kld.estimate if other.kld else None)
    yield from _of("KL divergence", *divergence, least=True)
    yield from _of("Same first choice", one.same_top1, other.same_top1, share=True)
    heads = (one.head.usual if one.head else None, other.head.usual if other.head else None)
    yield from _of(f"Tokens a pass, {USUAL_DRAFTS} drafts", *heads)
    yield from _of("Drafts accepted", one.acceptance, other.acceptance, share=True)
    yield from _of("The source's own head", one.source_acceptance, other.source_acceptance, share=True)
    bare, best = zip(*map(_speeds, (ours, theirs)), strict=True)
    for what, pair in (("Tokens/s", bare), ("Tokens/s, drafting", best)):
        if any(pair):
            yield Line(what, *(each or "–" for each in pair))


def _of(
    what: str, ours: Estimate | None, theirs: Estimate | None, *, share: bool = False, least: bool = False
) -> Iterator[Line]:
    if ours is None and theirs is None:
        return
    ahead = ""
    if ours and theirs and ours.error is not None and theirs.error is not None:
        gap = (theirs.value - ours.value) if least else (ours.value - theirs.value)
        if abs(gap) > 2 * math.hypot(ours.error, theirs.error):
            ahead = "ours" if gap > 0 else "theirs"
    yield Line(what, with_error(ours, share=share) or "–", with_error(theirs, share=share) or "–", ahead)


def _speeds(artifact: Artifact) -> tuple[str, str]:
    """Without drafts, and with as many as were the fastest."""
    if (bench := artifact.bench) is None:
        return "", ""
    drafting = bench.best.tok_s.median if bench.best.n_max else None
    return speed(bench.bare.tok_s.median if bench.bare else None), speed(drafting)
