"""A long text tokenized a window at a time, with the ids that it has as a whole.

A tokenizer keeps some 150 bytes for every byte that it is given: 3 GB for a text of 20 MB. What a token is
depends on its surroundings only; so windows overlap, and one is left for the next where both see the same
tokens at the same places, many to either side. Where they see none (a megabyte of one letter), the window
grows, in the worst case to the whole text.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


WINDOW = 1 << 18
"""Characters that are tokenized at a time."""
_OVERLAP = 1 << 13
_ALIKE = 32  # tokens before and after the place where one window is left for the next

Token = tuple[int, int, int]
"""Id, where it begins, where it ends; in characters."""


def tokens_of(
    text: str, encode: Callable[[str], Sequence[Token]], *, window: int = WINDOW, overlap: int = _OVERLAP
) -> array[int]:
    """The ids of ``text``, as ``encode`` gives them for all of it.

    Args:
        encode: tokens of a text, without any that do not come from it.
    """
    ids = array("i")
    begin, first, size = 0, 0, window
    here = encode(text[:size])
    while begin + size < len(text):
        end = begin + size
        after = end - overlap
        there = [(i, b + after, e + after) for i, b, e in encode(text[after : after + window])]
        mine = [(i, b + begin, e + begin) for i, b, e in here[first:]]
        place = _meeting(mine, there, after + overlap // 4, end - overlap // 4)
        if place is None:
            size *= 2
            here = encode(text[begin : begin + size])
            continue
        ids.extend(token[0] for token in mine[: place[0]])
        begin, first, size = after, place[1], window
        here = [(i, b - after, e - after) for i, b, e in there]
    ids.extend(token[0] for token in here[first:])
    return ids


def _meeting(one: Sequence[Token], other: Sequence[Token], low: int, high: int) -> tuple[int, int] | None:
    """Indexes in both from which, and before which, they have the same tokens."""
    starts = {token: at for at, token in enumerate(other)}
    for at in range(max(_ALIKE, bisect_left(one, low, key=lambda token: token[1])), len(one) - _ALIKE):
        token = one[at]
        if token[1] >= high:
            return None
        place = starts.get(token, -1)
        if place < _ALIKE or token[1] < one[at - 1][2]:  # several tokens of one character: not between them
            continue
        if one[at - _ALIKE : at + _ALIKE] == other[place - _ALIKE : place + _ALIKE]:
            return at, place
    return None
