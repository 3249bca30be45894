"""What drafting comes to, by how many drafts at a time: a line for each artifact's head, and the source's.

And, where a head was tuned to its trunk, what that brought.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from qexport.receipt.text import with_error
from qexport.report.bars import Bar, BarGroup, draw_bars
from qexport.report.scale import Linear
from qexport.report.svg import (
    Box,
    Chart,
    LegendEntry,
    drawing,
    element,
    group,
    line,
    mark,
    short,
    small,
    text,
    text_width,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from markupsafe import Markup

    from qexport.receipt.measures import Drafting
    from qexport.receipt.types import Artifact
    from qexport.report.report import Report


_TOP, _BOTTOM, _LEFT, _HEIGHT = 14.0, 46.0, 58.0, 330.0
_LINE = 16.0


def ladder_chart(report: Report) -> Chart | None:
    """``None`` where no head was followed along a chain of drafts."""
    rows = [each for each in report.models[0].measured if each.measures.head is not None]
    if not rows:
        return None
    source = next((each.measures.source_head for each in rows if each.measures.source_head), None)
    said = "; ".join(f"{each.title}: {_told(each.measures.head)}" for each in rows if each.measures.head)
    legend = [LegendEntry(small(line(1, 7, 13, 7, "own")), "the source's own head")] if source else []
    return Chart(
        title="What drafting brings",
        reading="Tokens that one pass through the model yields, by how many drafts its MTP head makes at a "
        "time, over text of several kinds, greedily. Without drafts it is one. Where a line is flat, more "
        "drafts bring nothing.",
        draw=lambda width: _draw(rows, source, width, f"What drafting brings. {said}."),
        legend=tuple(legend),
    )


def retuned_chart(report: Report) -> Chart | None:
    """``None`` where no head was tuned."""
    tuned = [(m.title, a.source.tuned) for m in report.models for a in m.artifacts[:1] if a.source.tuned]
    if not tuned:
        return None
    groups = [
        BarGroup(
            title if len(tuned) > 1 else "",
            (
                Bar("before", found.before.value, with_error(found.before), "bare", found.before.span),
                Bar("after", found.after.value, with_error(found.after), "mtp best", found.after.span),
            ),
        )
        for title, found in tuned
    ]
    high = max(found.after.value + 2 * (found.after.error or 0.0) for _, found in tuned)
    said = "; ".join(f"{bar.name} {bar.figure}" for each in groups for bar in each.bars)
    found = tuned[0][1]
    return Chart(
        title="The head, tuned to this model",
        reading=f"Tokens per verification with up to {found.n_max} drafts, before and after, on documents "
        f"that it was not trained on. The head was that of {found.base}.",
        draw=lambda width: draw_bars(
            groups, width, label=f"Tuning the head: {said}.", unit="Tokens per verification", high=1.05 * high
        ),
    )


def _told(head: Drafting) -> str:
    return ", ".join(f"{with_error(each)} with {at}" for at, each in enumerate(head.argmax, 1))


def _draw(rows: Sequence[Artifact], source: Drafting | None, width: float, label: str) -> Markup:
    heads = [each.measures.head for each in rows]
    known = [each for each in (*heads, source) if each is not None]
    most = max(each.value for head in known for each in head.argmax)
    right = width - 20 - max(text_width(short(each.title)) for each in rows)
    height = max(_HEIGHT, _TOP + _LINE * len(rows) + _BOTTOM)
    frame = Box(_LEFT, _TOP, right, height - _BOTTOM)
    depth = max(len(head.argmax) for head in known)
    x = Linear(0.0, float(depth), frame.left, frame.right)
    y = Linear(1.0, max(1.0 + 1.08 * (most - 1.0), 1.2), frame.bottom, frame.top)
    parts = [*_grid(x, y, frame, depth)]
    if source is not None:
        parts += [line(*one, *other, "own") for one, other in pairwise(_places(source, x, y))]
    ends = []
    for row, head in zip(rows, heads, strict=True):
        if head is not None:
            parts.append(_line(row, head, x, y))
            ends.append((_places(head, x, y)[-1], short(row.title)))
    parts += _names(ends, frame)
    return drawing(width, height, label, parts)


def _places(head: Drafting, x: Linear, y: Linear) -> list[tuple[float, float]]:
    return [(x(0.0), y(1.0)), *((x(float(at)), y(each.value)) for at, each in enumerate(head.argmax, 1))]


def _line(row: Artifact, head: Drafting, x: Linear, y: Linear) -> Markup:
    at = _places(head, x, y)
    parts = [line(*one, *other, "rung") for one, other in pairwise(at)]
    for (px, py), each in zip(at[1:], head.argmax, strict=True):
        if each.error is not None:
            low, high = each.span
            parts.append(line(px, y(low), px, y(high), "error"))
        parts.append(group(mark(row.format), class_="point", at=(px, py)))
    parts.append(element("title", f"{row.title}: {_told(head)}"))
    return group(*parts, class_=f"tail {row.format}")


def _grid(x: Linear, y: Linear, frame: Box, depth: int) -> Iterator[Markup]:
    for value in y.ticks(5):
        yield line(frame.left, y(value), frame.right, y(value), "grid")
        yield text(frame.left - 6, y(value) + 4, f"{value:g}", "tick", "end")
    yield line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
    for at in range(depth + 1):
        yield text(x(float(at)), frame.bottom + 18, str(at), "tick", "middle")
    across = (frame.left + frame.right) / 2
    yield text(across, frame.bottom + 38, "Drafts at a time (n-max)", "label", "middle")
    middle = (frame.top + frame.bottom) / 2
    yield text(12.0, middle, "Tokens per verification", "label", "middle", turned=True)


def _names(ends: Sequence[tuple[tuple[float, float], str]], frame: Box) -> Iterator[Markup]:
    """At the ends of the lines, in their order, none over another."""
    ordered = sorted(ends, key=lambda end: end[0][1])
    lowest = frame.bottom - _LINE * (len(ordered) - 1)
    baseline = frame.top
    for (px, py), name in ordered:
        baseline = min(max(baseline, py), max(lowest, frame.top))
        lowest += _LINE
        yield line(px + 7, py, px + 12, baseline, "leader")
        yield text(px + 15, baseline + 4, name, "name")
        baseline += _LINE
