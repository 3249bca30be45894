"""What people wrote into a card stays there when the card is written again.

Between the two markers stands their text; in the front matter, every key that qexport does not write itself.
A card without markers was not made here: it is not replaced unless the user says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.front_matter import read_front_matter
from qexport.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Mapping


KEEP_START = "<!-- qexport:keep -->"
KEEP_END = "<!-- /qexport:keep -->"
_SECTION = re.compile(f"{re.escape(KEEP_START)}(.*?){re.escape(KEEP_END)}", re.DOTALL)


@dataclass(frozen=True)
class Kept:
    """``text``: what stood between the markers, without blank ends; ``front_matter``: what stood above."""

    text: str = ""
    front_matter: Mapping[str, Any] = field(default_factory=dict)


def read_kept(card: str | None, where: str, *, replace: bool = False) -> Kept:
    """What to keep of an earlier card.

    Args:
        card: its text, ``None`` where there is none.
        where: whose it is, for messages.
        replace: a card that was not made by qexport may be replaced; then nothing of it is kept.

    Raises:
        UsageProblem: it has no markers, one without the other, or front matter that cannot be read.
    """
    if card is None or not card.strip():
        return Kept()
    sections = _SECTION.findall(card)
    if sections and card.count(KEEP_START) == card.count(KEEP_END) == len(sections):
        text = "\n\n".join(section.strip() for section in sections if section.strip())
        notes: list[str] = []
        found = read_front_matter(card.encode("utf-8", "replace"), notes)
        if notes and not replace:
            raise UsageProblem(
                f"what stands in the front matter of {where} would be lost: {notes[0]}",
                hint="Correct it, or give it up with --replace-card.",
            )
        return Kept(text, found)
    if replace:
        return Kept()
    if KEEP_START in card or KEEP_END in card:
        message = f"the README.md of {where} has one of qexport's markers without the other"
    else:
        message = f"the README.md of {where} was not written by qexport"
    raise UsageProblem(
        message,
        hint=f"Put what shall stay between {KEEP_START} and {KEEP_END}, or replace it with --replace-card.",
    )
