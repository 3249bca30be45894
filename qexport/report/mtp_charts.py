"""The MTP head in two charts: how much of what it drafts is accepted, and what that does for speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.receipt.text import speed, times, with_error
from qexport.report.bars import Bar, BarGroup, draw_bars
from qexport.report.svg import Chart, LegendEntry, line, rectangle, small
from qexport.report.words import machines

if TYPE_CHECKING:
    from markupsafe import Markup

    from qexport.receipt.types import Artifact
    from qexport.report.report import Report


def acceptance_chart(report: Report) -> Chart | None:
    """``None`` where no acceptance was measured."""
    groups = [
        BarGroup(model.title if len(report.models) > 1 else "", tuple(map(_acceptance, rows)))
        for model in report.models
        if (rows := [row for row in model.measured if row.measures.acceptance is not None])
    ]
    if not groups:
        return None
    bars = [bar for each in groups for bar in each.bars]
    said = "; ".join(f"{bar.name}: {bar.figure}" for bar in bars)
    legend = [LegendEntry(_swatch("mtp"), "artifact")]
    if any(bar.beside is not None for bar in bars):
        legend.append(LegendEntry(small(line(7, 0, 7, 14, "beside")), "its source's own head, unquantized"))
    return Chart(
        title="MTP acceptance",
        reading="The share of tokens drafted by the MTP head that the model accepts, one token ahead, over "
        "held-out text. An artifact's head should come close to its source's.",
        draw=lambda width: draw_bars(
            groups,
            width,
            label=f"MTP acceptance. {said}.",
            unit="Drafts accepted (per cent)",
            high=1.0,
            percent=True,
        ),
        legend=tuple(legend),
    )


def speed_chart(report: Report) -> Chart | None:
    """``None`` where nothing was benched."""
    several = len(report.models) > 1
    timed = [
        (model, row) for model in report.models for row in model.measured if row.bench and row.bench.speeds
    ]
    if not timed:
        return None
    # The same type of two models one after the other: that is what one wants to compare.
    order: dict[tuple[str, str], int] = {}
    for _, row in timed:
        order.setdefault((row.kind, row.label), len(order))
    timed.sort(key=lambda pair: order[pair[1].kind, pair[1].label])
    groups = [_speeds(row, f"{row.title}, {model.title}" if several else row.title) for model, row in timed]
    high = max(max(bar.value, *(bar.spread or (0.0,))) for each in groups for bar in each.bars)
    said = "; ".join(
        f"{each.title}: " + ", ".join(f"{b.name} {b.figure}" for b in each.bars) for each in groups
    )
    ways = machines(row.bench for _, row in timed if row.bench)
    notes = ways if len(ways) == 1 else [f"Not all were measured alike: {way}" for way in ways]
    whisker = [line(1, 7, 13, 7, "spread"), *(line(at, 4, at, 10, "spread") for at in (1, 13))]
    legend = (
        LegendEntry(_swatch("bare"), "without MTP"),
        LegendEntry(_swatch("mtp"), "with MTP"),
        LegendEntry(_swatch("mtp best"), "with MTP, the fastest"),
        LegendEntry(small(*whisker), "slowest to fastest round"),
    )
    return Chart(
        title="Speed with and without MTP",
        reading="Tokens a second, the median of several rounds. n-max is how many tokens the MTP head drafts "
        "at a time; in brackets stand the gain over no MTP and the share of drafts accepted.",
        draw=lambda width: draw_bars(
            groups, width, label=f"Speed. {said}.", unit="Tokens per second", high=high * 1.02
        ),
        legend=legend,
        notes=tuple(notes),
    )


def _acceptance(row: Artifact) -> Bar:
    found, source = row.measures.acceptance, row.measures.source_acceptance
    assert found is not None
    words = "" if source is None else f" (source {with_error(source, share=True)})"
    return Bar(
        name=row.title,
        value=found.value,
        figure=f"{with_error(found, share=True)}{words}",
        class_="mtp",
        beside=None if source is None else source.value,
    )


def _speeds(row: Artifact, title: str) -> BarGroup:
    assert row.bench is not None
    bare = row.bench.bare
    drafting = [found for found in row.bench.speeds if found.n_max]
    best = max(drafting, key=lambda found: found.tok_s.median, default=None)
    bars: list[Bar] = []
    for found in row.bench.speeds:
        gain = times(found.tok_s.median / bare.tok_s.median) if found.n_max and bare is not None else ""
        share = "" if found.acceptance is None else f"{100 * found.acceptance:.0f} %"
        more = ", ".join(filter(None, (gain, share)))
        figure = f"{speed(found.tok_s.median)} ({more})" if more else speed(found.tok_s.median)
        look = "bare" if not found.n_max else "mtp best" if found is best else "mtp"
        name = f"n-max {found.n_max}" if found.n_max else "off"
        bars.append(Bar(name, found.tok_s.median, figure, look, (found.tok_s.low, found.tok_s.high)))
    return BarGroup(title, tuple(bars))


def _swatch(look: str) -> Markup:
    return small(rectangle(0, 2, 14, 10, f"bar {look}"))
