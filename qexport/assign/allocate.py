"""Which type each tensor gets so that a file of some size costs least, or one of some cost is smallest.

What is chosen between are **prices**: for each group of tensors that have one type together, and each word
of the format, the bytes it takes and the divergence it costs (``docs/quality.md``). Costs of tensors add up,
so it is a knapsack: of all upgrades from one type to a better one, those that save most per byte come first.

A group starts with its fewest bytes. Its words on the lower convex hull of (bytes, cost) are steps whose
savings per byte fall; a word above the hull is a step, too, for when the hull's next one has no room. All
steps of all groups stand in one list, the best first, and each is taken that begins where its group is and
fits. That is at most one step from the best there is. And more bytes never give a worse answer: at the first
step that only the larger budget has room for, everything that the smaller one can still gain saves less per
byte and takes fewer bytes. Ties go by name, so the answer is the same everywhere.

Left out: the type of a tensor as it changes what an error in another costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any


@dataclass(frozen=True)
class Price:
    """Bytes, and nats of divergence per token."""

    nbytes: int
    kld: float


@dataclass(frozen=True)
class Prices:
    """Of every word that each group may have.

    Attributes:
        groups: by the group's name, words to prices; at least one word each.
        members: the tensors of each group, by canonical names; a group that is not named is one tensor.
    """

    groups: Mapping[str, Mapping[str, Price]]
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def steps(self) -> list[Upgrade]:
        """All steps of all groups, those that save most per byte first."""
        found = [step for group, words in self.groups.items() for step in _steps_of(group, words)]
        found.sort(key=lambda step: (-step.worth, step.group, step.place, -step.nbytes, step.after))
        return found

    def of(self, words: Mapping[str, str]) -> Price:
        """What these words of all groups come to."""
        chosen = [self.groups[group][word] for group, word in words.items()]
        return Price(sum(each.nbytes for each in chosen), sum(each.kld for each in chosen))

    def types(self, words: Mapping[str, str]) -> dict[str, str]:
        """The words of groups, by tensor."""
        return {name: word for group, word in words.items() for name in self.members.get(group, (group,))}

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            group: {
                "tensors": list(self.members.get(group, (group,))),
                "types": {word: {"bytes": each.nbytes, "kld": each.kld} for word, each in words.items()},
            }
            for group, words in self.groups.items()
        }


@dataclass(frozen=True)
class Allocation:
    """A word for each group, and what they come to."""

    words: Mapping[str, str] = field(repr=False)
    price: Price


def allocate(prices: Prices, budget: int) -> Allocation | None:
    """The words that cost least in ``budget`` bytes; ``None`` where the fewest bytes are more than that."""
    return _walked(prices, budget)


def cheapest(prices: Prices, max_kld: float) -> Allocation | None:
    """The words that take the fewest bytes at this cost at most; ``None`` where the least cost is more."""
    low = prices.of(_start(prices)).nbytes
    high = prices.of({group: _largest(words) for group, words in prices.groups.items()}).nbytes
    best = _walked(prices, high)
    if best is None or best.price.kld > max_kld:
        return None
    while low < high:
        middle = (low + high) // 2
        found = _walked(prices, middle)
        if found is not None and found.price.kld <= max_kld:
            best, high = found, min(middle, max(low, found.price.nbytes))
        else:
            low = middle + 1
    return best


def curve(prices: Prices) -> list[Price]:
    """Cost against bytes, from the fewest to the most that are worth their bytes: the best at each point."""
    words = _start(prices)
    at = prices.of(words)
    points = [at]
    for step in prices.steps:
        if step.on_hull and words[step.group] == step.before:
            words[step.group] = step.after
            at = Price(at.nbytes + step.nbytes, at.kld - step.saved)
            points.append(at)
    return points


@dataclass(frozen=True)
class Upgrade:
    """From one word of a group to another of more bytes and less cost.

    Attributes:
        worth: what a byte saves; never more than that of a step before it, whatever rounding says.
        place: among the group's steps along the hull.
    """

    group: str
    before: str
    after: str
    nbytes: int
    saved: float
    worth: float
    place: int
    on_hull: bool


def _smallest(words: Mapping[str, Price]) -> str:
    return min(words, key=lambda word: (words[word].nbytes, words[word].kld))


def _largest(words: Mapping[str, Price]) -> str:
    return max(words, key=lambda word: (words[word].nbytes, -words[word].kld))


def _start(prices: Prices) -> dict[str, str]:
    return {group: _smallest(words) for group, words in prices.groups.items()}


def _steps_of(group: str, words: Mapping[str, Price]) -> list[Upgrade]:
    steps: list[Upgrade] = []
    at, most = _smallest(words), math.inf
    for place in count():
        here = words[at]
        onward = {
            word: (each.nbytes - here.nbytes, here.kld - each.kld)
            for word, each in words.items()
            if each.nbytes > here.nbytes and each.kld < here.kld
        }
        if not onward:
            break
        worth = {word: min(most, saved / nbytes) for word, (nbytes, saved) in onward.items()}
        hull = max(onward, key=lambda word: (worth[word], onward[word][0]))
        steps += [
            Upgrade(group, at, word, nbytes, saved, worth[word], place, on_hull=word == hull)
            for word, (nbytes, saved) in onward.items()
            if word == hull or nbytes < onward[hull][0]
        ]
        at, most = hull, worth[hull]
    return steps


def _walked(prices: Prices, budget: int) -> Allocation | None:
    words = _start(prices)
    left = budget - prices.of(words).nbytes
    if left < 0:
        return None
    for step in prices.steps:
        if step.nbytes <= left and words[step.group] == step.before:
            words[step.group] = step.after
            left -= step.nbytes
    return Allocation(words, prices.of(words))
