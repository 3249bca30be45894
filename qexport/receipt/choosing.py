"""Which artifact for which memory: what each holds, and the closest to the source of those that fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.formats.registry import words_of
from qexport.receipt.measures import USUAL_DRAFTS
from qexport.receipt.memory import CONTEXTS, MEMORIES, Cache, Load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.receipt.types import Artifact


_LEAST = CONTEXTS[0]
_CLOSE = (
    (0.001, "as good as the original"),
    (0.006, "hardly distinguishable"),
    (0.025, "very close"),
    (0.06, "close, differs now and then"),
    (0.2, "differs noticeably"),
)


def closeness(kld: float) -> str:
    """A divergence in words, by what publishers' files of 27B models measure: Q8_0 0.0005, Q4_K_M 0.017.

    >>> closeness(0.0004), closeness(0.017), closeness(0.5)
    ('as good as the original', 'very close', 'differs a lot')
    """
    return next((words for most, words in _CLOSE if kld <= most), "differs a lot")


@dataclass(frozen=True)
class Option:
    """An artifact that could be taken, and what a runtime holds of it."""

    artifact: Artifact
    load: Load

    @property
    def cache(self) -> Cache:
        return self.load.cache

    @property
    def distance(self) -> float | None:
        """Its divergence from the source, where it was measured."""
        kld = self.artifact.measures.kld
        return None if kld is None else kld.mean


@dataclass(frozen=True)
class Pick:
    """What to take for a memory: with at most so many tokens of context."""

    gib: int
    option: Option
    context: int


def options_of(artifacts: Sequence[Artifact]) -> list[Option]:
    """Every model among them whose needs are known: not heads alone, and nothing that failed or is lost.

    A GGUF is counted with the smallest tower file beside it, and whatever can draft as if it did, with a file
    of its head.
    """
    towers = [each.size for each in artifacts if each.kind == "mmproj"]
    heads = {each.name.rpartition("/")[2]: each.size for each in artifacts if each.kind == "mtp"}
    found = []
    for each in artifacts:
        cache = each.source.about.cache
        if each.is_model and not each.is_drafter and cache.keys and each.state.may_be_taken:
            beside = min(towers, default=0) if each.format == "gguf" else 0
            head = heads.get(each.head_file, 0)
            drafts = USUAL_DRAFTS if each.has_mtp or head else 0
            found.append(Option(each, Load(each.size + beside + head, cache, drafts)))
    return found


def contexts(options: Sequence[Option]) -> tuple[int, ...]:
    """The lengths that are worth showing: as far as the model goes."""
    if not options:
        return ()
    most = max(each.cache.most for each in options)
    return tuple(length for length in CONTEXTS if not most or length <= most) or ((most,) if most else ())


def pick(options: Sequence[Option], gib: int) -> Pick | None:
    """The one that is closest to the source, of those that fit with a conversation's length.

    Closest is the least divergence where all were measured, else the largest. ``None``: none fits.
    """
    fitting = [(each, each.load.longest(gib)) for each in options]
    enough = [pair for pair in fitting if pair[1] and pair[1] >= min(_LEAST, pair[0].cache.most or _LEAST)]
    if not enough:
        return None
    measured = all(each.distance is not None for each, _ in enough)

    def merit(pair: tuple[Option, int]) -> tuple[float, int]:
        each = pair[0]
        return (-(each.distance or 0.0) if measured else 0.0, each.load.weights)

    best, longest = max(enough, key=merit)
    return Pick(gib, best, longest)


def picks(options: Sequence[Option]) -> dict[str, tuple[Pick | None, ...]]:
    """By the program that runs them, what to take for each of :data:`MEMORIES`."""
    programs = dict.fromkeys(words_of(each.artifact.format).program for each in options)
    return {
        program: tuple(
            pick([each for each in options if words_of(each.artifact.format).program == program], gib)
            for gib in MEMORIES
        )
        for program in programs
        if program
    }


def tokens_text(count: int) -> str:
    """How long a context is.

    >>> tokens_text(8192), tokens_text(262144), tokens_text(1_048_576), tokens_text(500)
    ('8k', '256k', '1M', '500')
    """
    if count >= 1 << 20:
        return f"{count >> 20}M"
    return f"{count >> 10}k" if count >= 1 << 10 else str(count)
