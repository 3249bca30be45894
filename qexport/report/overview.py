"""Each artifact on a card of its own: what it is, how close, what it fits, how it is run, how it ended."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.families.parts import PARTS
from qexport.formats.registry import words_of
from qexport.receipt.choosing import Pick, closeness, options_of, pick, tokens_text
from qexport.receipt.measures import USUAL_DRAFTS
from qexport.receipt.memory import MEMORIES
from qexport.receipt.plainly import outcome
from qexport.receipt.state import State
from qexport.receipt.tables import BESIDE_PLAIN
from qexport.receipt.text import listed, nats, speed, times, with_error
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qexport.receipt.choosing import Option
    from qexport.receipt.types import Artifact
    from qexport.report.report import Model


_WHOLE = frozenset(("F32", "F16", "BF16"))
_SIGHTS = {"passed": "sees pictures, proven", "failed": "sees pictures wrongly"}
_LOOKS = {State.PASSED: "good", State.FAILED: "bad"}


@dataclass(frozen=True)
class Room:
    """How much text goes into a memory beside an artifact; empty: it does not fit."""

    gib: int
    context: str


@dataclass(frozen=True)
class Overview:
    """What stands on the card.

    Attributes:
        look: ``good``, ``bad`` or ``open``: of the verdict.
        figures: names and values, the most important first.
        sees: whether it takes pictures, in words; empty where the source does not either.
        chosen: what its types were chosen for; empty where they were not.
        whole: the parts that are stored in 16 bits or more, where others are not.
        command: how it is run, from beside it; empty where it is lost.
    """

    artifact: Artifact
    look: str
    verdict: str
    size: str
    close: str
    figures: tuple[tuple[str, str], ...]
    fits: tuple[Room, ...]
    sees: str
    chosen: str
    whole: str
    command: str


@dataclass(frozen=True)
class Taken:
    """What to take for a memory, with how much text."""

    gib: int
    picks: tuple[tuple[str, str, str], ...]
    """Of each program: the artifact, how close it is, and the text that fits."""


def overviews(model: Model) -> tuple[Overview, ...]:
    """A card for each artifact but heads in folders of their own."""
    options = {id(each.artifact): each for each in _options(model)}
    return tuple(_overview(each, options.get(id(each)), model) for each in model.measured)


def taken(model: Model) -> tuple[Taken, ...]:
    """What is worth taking for each memory; those into which nothing fits are left out."""
    options = _options(model)
    formats = dict.fromkeys(each.artifact.format for each in options)
    found = []
    for gib in MEMORIES:
        chosen = (pick([each for each in options if each.artifact.format == kind], gib) for kind in formats)
        if picks := tuple(_picked(each) for each in chosen if each is not None):
            found.append(Taken(gib, picks))
    return tuple(found)


def verdict_of(model: Model) -> tuple[str, str]:
    """The look and the words of all of them together."""
    states = [each.state for each in model.artifacts]
    broken = any(each.broken_gates for each in model.artifacts)
    count = len(states)
    if State.FAILED in states or broken:
        bad = sum(each.state is State.FAILED or bool(each.broken_gates) for each in model.artifacts)
        return "bad", f"{bad} of {count} failed"
    passed = states.count(State.PASSED)
    if passed < count:
        lost = (f"{many} {state}" for state in (State.GONE, State.CHANGED) if (many := states.count(state)))
        return "open", ", ".join([f"{passed} of {count} proven", *lost])
    return "good", f"all {count} passed" if count > 1 else "passed"


def _options(model: Model) -> list[Option]:
    return options_of((*model.artifacts, *model.beside))


def _picked(found: Pick) -> tuple[str, str, str]:
    artifact, distance = found.option.artifact, found.option.distance
    close = "" if distance is None else closeness(distance)
    return artifact.title, close, f"up to {tokens_text(found.context)} tokens of text"


def _overview(artifact: Artifact, option: Option | None, model: Model) -> Overview:
    kld = artifact.measures.kld
    look = "bad" if artifact.broken_gates else _LOOKS.get(artifact.state, "open")
    return Overview(
        artifact,
        look,
        outcome(artifact),
        size_text(artifact.size),
        "" if kld is None else closeness(kld.mean),
        tuple(_figures(artifact)),
        () if option is None else tuple(_fit(option, gib) for gib in MEMORIES),
        _sight(artifact, model),
        f"types chosen for {found.aim}" if (found := artifact.predicted) and found.aim else "",
        _whole(artifact),
        _command(artifact, model),
    )


def _fit(option: Option, gib: int) -> Room:
    longest = option.load.longest(gib)
    return Room(gib, tokens_text(longest) if longest else "")


def _figures(artifact: Artifact) -> Iterator[tuple[str, str]]:
    found = artifact.measures
    if found.kld:
        yield "KL divergence", with_error(found.kld.estimate)
    elif artifact.predicted:
        yield "Predicted divergence", nats(artifact.predicted.kld)
    if beside := BESIDE_PLAIN.value(artifact):
        yield BESIDE_PLAIN.title, beside
    if found.same_top1:
        yield "Same first choice", with_error(found.same_top1, share=True)
    if found.head:
        yield f"Tokens a pass, {USUAL_DRAFTS} drafts", with_error(found.head.usual)
    elif found.acceptance:
        yield "Drafts accepted", with_error(found.acceptance, share=True)
    if bench := artifact.bench:
        bare = bench.bare
        gain = f", {times(bench.best.tok_s.median / bare.tok_s.median)}" if bare and bench.best.n_max else ""
        yield "Speed", f"{speed(bench.best.tok_s.median)} tokens/s{gain}"


def _sight(artifact: Artifact, model: Model) -> str:
    if not artifact.source.vision:
        return ""
    towers = [each for each in model.beside if each.kind == "mmproj"]
    if artifact.sees or (towers and artifact.format == "gguf"):
        seen = artifact.verification.images if artifact.verification else ""
        return _SIGHTS.get(seen, "sees pictures")
    return "text alone"


def _whole(artifact: Artifact) -> str:
    known = [part for part in PARTS if artifact.parts.get(part) and part != "router"]
    whole = [part for part in known if _WHOLE.issuperset(artifact.parts[part])]
    return f"in 16 bits: {listed(whole)}" if whole and len(whole) < len(known) else ""


def _is_head(beside: Artifact, artifact: Artifact) -> bool:
    return beside.kind == "mtp" and beside.name.rpartition("/")[2] == artifact.head_file


def _command(artifact: Artifact, model: Model) -> str:
    if artifact.lost is not None:
        return ""
    name = shlex.quote(artifact.name.rstrip("/"))
    program = words_of(artifact.format).program
    if program == "llama_cpp":
        tower = next((each.name for each in model.beside if each.kind == "mmproj"), "")
        more = f" --mmproj {shlex.quote(tower)}" if tower else ""
        if head := next((each.name for each in model.beside if _is_head(each, artifact)), ""):
            more += f" -md {shlex.quote(head)}"
        return f"llama-server -m {name}{more}{' --spec-type draft-mtp' if head or artifact.has_mtp else ''}"
    if program == "mlx_lm":
        return f"mlx_lm.chat --model {name}"
    return f"vllm serve {name}" if program == "served" else ""
