"""Size against KL divergence: what a byte buys. The plot that publishers of quantizations show first.

A mark for the mean with its error, a thin line up to the 99th percentile; names beside the marks, formats
told apart by shape and colour. A line joins those that nothing smaller is as close as. Divergence is on a
logarithmic scale, with a place for what is zero. Where types were chosen by what errors cost, a line shows
what was predicted of all sizes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from qexport.formats.registry import words_of
from qexport.receipt.measures import Estimate
from qexport.receipt.state import State
from qexport.receipt.text import nats
from qexport.report.labels import Labels, place
from qexport.report.scale import Linear, Log
from qexport.report.svg import (
    Box,
    Chart,
    LegendEntry,
    drawing,
    element,
    group,
    key,
    line,
    mark,
    short,
    text,
    text_width,
)
from qexport.sizes import size_text

if TYPE_CHECKING:
    from markupsafe import Markup

    from qexport.receipt.types import Artifact, Possible
    from qexport.report.report import Report


FLOOR = 1e-6
"""Nats below which float32 arithmetic is all that is measured: drawn as zero."""
_TOP, _BOTTOM, _LEFT, _RIGHT = 14.0, 46.0, 24.0, 14.0
_ZERO_GAP = 26.0
_LINE = 17.0


@dataclass(frozen=True)
class _Point:
    artifact: Artifact
    mean: float
    tail: float | None
    other: bool

    @property
    def error(self) -> tuple[float, float] | None:
        """Two standard errors to either side."""
        kld = self.artifact.measures.kld
        return None if kld is None or kld.error is None else Estimate(self.mean, kld.error).span

    @property
    def predicted(self) -> float | None:
        """What it was predicted to be."""
        return None if self.artifact.predicted is None else self.artifact.predicted.kld


_Tail = tuple[_Point, float, float, float]


def size_chart(report: Report) -> Chart | None:
    """``None`` where no divergence was measured."""
    points = [
        _Point(each, each.measures.kld.mean, each.measures.kld.p99, other=model is not report.models[0])
        for model in reversed(report.models)  # the first one's on top
        for each in model.measured
        if each.measures.kld is not None
    ]
    if not points:
        return None
    return Chart(
        title="Size against KL divergence",
        reading="Further left is smaller, further down is closer to the unquantized model. The mark is the "
        "mean, the bar on it two standard errors, the thin line ends at the 99th percentile. Each step up is "
        "ten times more. The grey line joins what nothing smaller is as close as."
        + (" A hollow ring is what was predicted." if any(p.predicted for p in points) else "")
        + (" A dashed line is what was predicted of types chosen for each size." if _curves(points) else ""),
        draw=lambda width: _draw(points, width),
        legend=tuple(_legend(report, points)),
    )


def _draw(points: Sequence[_Point], width: float) -> Markup:
    values = [value for p in points for value in (p.mean, p.tail, p.predicted) if value is not None]
    zero = any(value < FLOOR for value in values)
    bottom = min(520.0, 250.0 + 0.26 * width) - _BOTTOM
    y = Log.over(values, bottom - (_ZERO_GAP if zero else 0), _TOP, bottom, floor=FLOOR)
    frame = Box(_LEFT + max(text_width(_plain(tick)) for tick in y.ticks()), _TOP, width - _RIGHT, bottom)
    x = _sizes([p.artifact.size for p in points], frame)
    at = [(x(p.artifact.size), y(p.mean)) for p in points]
    parts = [*_grid(x, y, frame, zero), *_foretold(points, x, y, frame), *_pareto(points, at)]
    parts += [*_tails(points, at, y), *_errors(points, at, y), *_guesses(points, at, y)]
    labels = _labels(points, at, y, Box(frame.left + 2, frame.top - 8, width - 2, frame.bottom + 9))
    parts += [line(*label.leader, "leader") for label in labels.placed if label.far]
    for p, where in zip(points, at, strict=True):
        shape = mark(p.artifact.format, "other" if p.other else "")
        parts.append(group(shape, element("title", _says(p)), class_="point", at=where))
    parts += [text(each.x, each.y, each.words, "name", each.anchor) for each in labels.placed]
    lines = [said for number, names in labels.key for said in _keyed(number, names, width)]
    height = frame.bottom + _BOTTOM
    parts += [text(0.0, height + _LINE * (at + 1), said, "key") for at, said in enumerate(lines)]
    said = "; ".join(_says(p) for p in points)
    below = _LINE * (len(lines) + 1) if lines else 0.0
    return drawing(width, height + below, f"Size against KL divergence. {said}.", parts)


def _labels(points: Sequence[_Point], at: Sequence[tuple[float, float]], y: Log, room: Box) -> Labels:
    bars = [Box(px - 2, end, px + 2, py) for _, px, py, end in _tailed(points, at, y)]
    bars += [
        Box(px - 3, y(p.error[1]), px + 3, y(p.error[0]))
        for p, (px, _) in zip(points, at, strict=True)
        if p.error
    ]
    # The other model's mark of the same name is near, and hollow.
    ours = {p.artifact.title for p in points if not p.other}
    names = ["" if p.other and p.artifact.title in ours else short(_name(p)) for p in points]
    return place(at, names, room, bars)


def _keyed(number: str, names: Sequence[str], width: float) -> list[str]:
    """Lines of the key."""
    words, indent = f"{number}  {', '.join(names)}", " " * (len(number) + 2)
    most = int(width / max(map(text_width, words)))
    return textwrap.wrap(words, most, subsequent_indent=indent, break_on_hyphens=False)


def _sizes(sizes: Sequence[int], frame: Box) -> Linear:
    least, most = float(min(sizes)), float(max(sizes))
    # From nothing where that wastes little: then distances are proportions.
    span = max(most - least, 0.1 * most, 1.0)
    low = 0.0 if least < 0.5 * span else max(0.0, least - 0.12 * span)
    return Linear(low, most + 0.16 * span, frame.left, frame.right)


def _grid(x: Linear, y: Log, frame: Box, zero: bool) -> list[Markup]:
    parts = [line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    for value in y.ticks():
        if not zero or y(value) < frame.bottom:
            parts.append(line(frame.left, y(value), frame.right, y(value), "grid"))
            parts.append(text(frame.left - 6, y(value) + 4, _plain(value), "tick", "end"))
    if zero:
        parts.append(text(frame.left - 6, frame.bottom + 4, "0", "tick", "end"))
    unit, name = (1e9, "GB") if x.high >= 1e9 else (1e6, "MB") if x.high >= 1e6 else (1e3, "kB")
    ticks = x.ticks(max(2, int((frame.right - frame.left) / 80)))
    for value in ticks:
        parts.append(line(x(value), frame.bottom, x(value), frame.bottom + 4, "axis"))
        parts.append(text(x(value), frame.bottom + 18, f"{value / unit:g}", "tick", "middle"))
    across, down = (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2
    parts.append(text(across, frame.bottom + 38, f"Size ({name})", "label", "middle"))
    parts.append(text(12.0, down, "KL divergence (nats, logarithmic)", "label", "middle", turned=True))
    return parts


def _curves(points: Sequence[_Point]) -> dict[str, tuple[Possible, ...]]:
    """What was predicted of other sizes, for each format of the first model by the artifact on top."""
    return {
        p.artifact.format: p.artifact.predicted.curve
        for p in points
        if not p.other and p.artifact.predicted is not None and p.artifact.predicted.curve
    }


def _foretold(points: Sequence[_Point], x: Linear, y: Log, frame: Box) -> Iterator[Markup]:
    """Those curves, as far as they are in the frame: what is beyond it is put on its edge."""
    for kind, curve in _curves(points).items():
        at = [(x(each.size), y(each.kld)) for each in curve]
        inside = [
            (px, py) for px, py in at if frame.left < px < frame.right and frame.top < py < frame.bottom
        ]
        parts = [line(*one, *other, "foretold") for one, other in pairwise(inside)]
        yield group(*parts, class_=f"tail {kind}")


def _pareto(points: Sequence[_Point], at: Sequence[tuple[float, float]]) -> Iterator[Markup]:
    """From each that nothing smaller is as close as to the next; what failed is none to choose."""
    ours = [
        (p.artifact.size, p.mean, where)
        for p, where in zip(points, at, strict=True)
        if not p.other and p.artifact.state.may_be_taken
    ]
    best, closest = [], float("inf")
    for _, mean, where in sorted(ours, key=lambda each: each[:2]):
        if mean < closest:
            closest = mean
            best.append(where)
    yield from (line(*one, *other, "pareto") for one, other in pairwise(best))


def _errors(points: Sequence[_Point], at: Sequence[tuple[float, float]], y: Log) -> Iterator[Markup]:
    for p, (px, _) in zip(points, at, strict=True):
        if p.error is not None:
            low, high = p.error
            yield group(line(px, y(low), px, y(high), "error"), class_=f"tail {p.artifact.format}")


def _guesses(points: Sequence[_Point], at: Sequence[tuple[float, float]], y: Log) -> Iterator[Markup]:
    """What was predicted of each, joined to what it came to."""
    for p, (px, py) in zip(points, at, strict=True):
        if p.predicted is not None:
            guess = y(p.predicted)
            ring = element("circle", cx=px, cy=guess, r=5.0, class_="guess")
            yield group(line(px, py, px, guess, "guess"), ring, class_=f"tail {p.artifact.format}")


def _tails(points: Sequence[_Point], at: Sequence[tuple[float, float]], y: Log) -> list[Markup]:
    parts: list[Markup] = []
    for p, px, py, end in _tailed(points, at, y):
        inner = [line(px, py, px, end, "stem"), line(px - 4, end, px + 4, end, "stem")]
        parts.append(group(*inner, class_=f"tail {p.artifact.format}"))
    return parts


def _tailed(points: Sequence[_Point], at: Sequence[tuple[float, float]], y: Log) -> Iterator[_Tail]:
    """Every point with a tail, where it is, and where its tail ends."""
    for p, (px, py) in zip(points, at, strict=True):
        if p.tail is not None:
            yield p, px, py, y(p.tail)


def _legend(report: Report, points: Sequence[_Point]) -> list[LegendEntry]:
    kinds = dict.fromkeys(p.artifact.format for p in points)
    found = [LegendEntry(key(kind), words_of(kind).name) for kind in kinds]
    if len(report.models) > 1:
        ours, *others = report.models
        found.append(LegendEntry(key("gguf", "plain"), f"filled: {ours.title}"))
        found.append(LegendEntry(key("gguf", "plain other"), "hollow: " + ", ".join(m.title for m in others)))
    return found


def _name(p: _Point) -> str:
    artifact = p.artifact
    return artifact.title if artifact.state is State.PASSED else f"{artifact.title} ({artifact.state})"


def _says(p: _Point) -> str:
    tail = "" if p.tail is None else f", 99th percentile {nats(p.tail)}"
    return f"{_name(p)}: {size_text(p.artifact.size)}, mean {nats(p.mean)} nats{tail}"


def _plain(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
