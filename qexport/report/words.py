"""What a report says in sentences, for someone who has never seen the tool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.receipt import words
from qexport.receipt.plainly import outcome
from qexport.receipt.state import State
from qexport.receipt.text import nats, speed, times
from qexport.receipt.words import WAS_RUN
from qexport.sizes import counted, size_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from qexport.receipt.speeds import Bench
    from qexport.receipt.types import Artifact
    from qexport.report.report import Model, Report


def summary(report: Report) -> list[str]:
    """The outcome, in the order in which it matters."""
    lines = [line for model in report.models for line in _of_model(model, len(report.models) > 1)]
    if report.gates:
        failed, count = len(report.failed_gates), len(report.gates)
        broken = f"Gates: {failed} of {counted(count, 'limit was', 'limits were')} not kept."
        lines.append(
            broken
            if failed
            else f"Gates: {'all ' if count > 1 else ''}{counted(count, 'limit was', 'limits were')} kept."
        )
    return lines


def glossary(report: Report) -> list[tuple[str, str]]:
    """The terms that occur, explained."""
    found = [artifact for model in report.models for artifact in model.artifacts]
    terms = {"Verified": f"The artifact {WAS_RUN}", **words.glossary(found)}
    if any(artifact.measures.head for artifact in found):
        terms["Tokens per verification"] = (
            "How many tokens one pass through the model yields when the MTP head drafts: those that were "
            "accepted and one more. Measured over text of several kinds, as runtimes draft, in chains."
        )
    if any(artifact.bench for artifact in found):
        terms["n-max"] = "The most tokens that the MTP head drafts at a time; off is without MTP."
    return list(terms.items())


def machines(benches: Iterable[Bench]) -> list[str]:
    """Each way in which speeds were measured, once; figures of different ones do not compare."""
    ways = (
        f"{bench.way}; {bench.repeats} rounds of {bench.prompts} prompts, answers of up to "
        f"{bench.n_predict} tokens, one at a time."
        for bench in benches
    )
    return list(dict.fromkeys(ways))


def _of_model(model: Model, several: bool) -> Iterator[str]:
    count = counted(len(model.artifacts), "artifact")
    size = size_text(sum(each.size for each in model.artifacts))
    yield f"{f'{model.title}: ' if several else ''}{count}, {size}. {_verdicts(model.artifacts)}"
    yield from (f"{each.file}, beside them: {each.state}." for each in model.lost)
    # What has not passed may be close by accident.
    passed = [each for each in model.measured if each.state is State.PASSED]
    known = [(each.measures.kld.mean, each) for each in passed if each.measures.kld]
    if known:
        least, best = min(known, key=lambda pair: (pair[0], pair[1].size))
        most, small = min(known, key=lambda pair: pair[1].size)
        if best is small:
            yield f"KL divergence from the source: {nats(least)} nats ({best.title})."
        else:
            yield (
                f"Closest to the source: {best.title}, {size_text(best.size)}, KL divergence {nats(least)} "
                f"nats. Smallest: {small.title}, {size_text(small.size)}, {nats(most)} nats."
            )
    yield from _fastest(model.measured)


def _verdicts(artifacts: Sequence[Artifact]) -> str:
    """How many are in which state, and who is in none to be proud of."""
    of = {state: [each for each in artifacts if each.state is state] for state in State}
    passed = len(of[State.PASSED])
    if passed == len(artifacts):
        return "All passed verification." if passed > 1 else "It passed verification."
    parts = [f"{passed or 'None'} passed verification"]
    for state in (State.FAILED, State.UNCOMPARED, State.NOT_RUN, State.GONE, State.CHANGED):
        if of[state]:
            named = (f"{r.title}: {outcome(r)}" if state is State.FAILED else r.title for r in of[state])
            parts.append(f"{len(of[state])} {state} ({', '.join(named)})")
    return f"{'; '.join(parts)}."


def _fastest(artifacts: Sequence[Artifact]) -> Iterator[str]:
    timed = [(each.bench.best, each.bench, each) for each in artifacts if each.bench]
    if not timed:
        return
    best, bench, each = max(timed, key=lambda found: found[0].tok_s.median)
    said = f"Fastest here: {each.title}, {speed(best.tok_s.median)} tokens a second"
    if best.n_max and bench.bare is not None:
        gain = times(best.tok_s.median / bench.bare.tok_s.median)
        said += f" with MTP at n-max {best.n_max}, {gain} its speed without"
    elif len(bench.speeds) > 1:
        said += " without MTP"
    yield f"{said}."
