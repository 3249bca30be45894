"""The same questions answered by the source and by every artifact, with the words that differ marked.

What the source itself would have answered is known wherever an artifact's answer was found to be, token by
token, the source's own first choice. Where it is not known, the answers are compared with those of the
artifact that is closest to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from qexport.receipt.safe_text import without_hidden

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.receipt.types import Artifact


_MOST = 3000
"""Characters that are compared: answers are a few sentences."""
_WORDS = re.compile(r"\s+|\S+")


@dataclass(frozen=True)
class Reply:
    """What some artifacts answered alike.

    Attributes:
        who: their titles; ``the source`` comes first.
        words: with what is between them; each with whether it differs.
    """

    who: tuple[str, ...]
    words: tuple[tuple[str, bool], ...]

    @property
    def same(self) -> bool:
        """Nothing differs."""
        return not any(differs for _, differs in self.words)

    @property
    def text(self) -> Markup:
        """HTML, what differs in ``<mark>``."""
        return marked(self.words)

    def plain(self, mark: str) -> str:
        """Text, what differs between marks."""
        return "".join(
            f"{mark}{word}{mark}" if differs and not word.isspace() else word for word, differs in self.words
        )


@dataclass(frozen=True)
class Question:
    """A question and its answers, the one that the others are compared with first.

    Attributes:
        from_source: that one is the source's own.
    """

    prompt: str
    answers: tuple[Reply, ...]
    from_source: bool

    @property
    def title(self) -> Markup:
        """The question as HTML, with its lines."""
        return marked([(word, False) for word in _WORDS.findall(_lines(self.prompt))])


@dataclass(frozen=True)
class _Said:
    artifact: Artifact
    text: str
    as_source: bool


def asked(artifacts: Sequence[Artifact], sources: dict[str, str] | None = None) -> tuple[Question, ...]:
    """Every question that two of the artifacts answered, or one and the source.

    Args:
        sources: what the source answered, by question, where that was looked at.
    """
    said: dict[str, list[_Said]] = {}
    for artifact in artifacts:
        found = artifact.verification
        if found is not None:
            same = (*found.as_source, *(False for _ in found.texts))
            for prompt, text, own in zip(found.prompts, found.texts, same, strict=False):
                said.setdefault(prompt, []).append(_Said(artifact, _lines(text), own))
    compared = (_compared(prompt, each, (sources or {}).get(prompt)) for prompt, each in said.items())
    return tuple(found for found in compared if sum(len(answer.who) for answer in found.answers) > 1)


def _compared(prompt: str, said: Sequence[_Said], source: str | None) -> Question:
    own = _lines(source) if source else next((each.text for each in said if each.as_source), None)
    first = own if own is not None else min(said, key=_distance).text
    texts: dict[str, list[str]] = {first: ["the source"] if own is not None else []}
    for each in said:
        texts.setdefault(each.text, []).append(each.artifact.title)
    answers = tuple(Reply(tuple(who), tuple(pieces(text, first))) for text, who in texts.items())
    return Question(prompt, answers, own is not None)


def _lines(text: str) -> str:
    """Without empty lines around it; the first one's indentation is part of it."""
    return re.sub(r"\A(\s*\n)+", "", text).rstrip()[:_MOST]


def _distance(said: _Said) -> float:
    kld = said.artifact.measures.kld
    return float("inf") if kld is None else kld.mean


def pieces(text: str, beside: str) -> list[tuple[str, bool]]:
    """Words and what is between them, each with whether it is not in ``beside`` at that place.

    >>> pieces("a red fox", "a blue fox")
    [('a', False), (' ', False), ('red', True), (' ', False), ('fox', False)]
    """
    words, others = (_WORDS.findall(each) for each in (text, beside))
    found: list[tuple[str, bool]] = []
    for kind, start, end, _, _ in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        found += [(word, kind != "equal") for word in words[start:end]]
    return found


def marked(words: Sequence[tuple[str, bool]]) -> Markup:
    """HTML of words with their lines, what differs in ``<mark>``."""
    parts: list[Markup] = []
    for word, differs in words:
        if word.isspace():
            # The indentation of a line is what stands behind the last line end.
            parts.append(Markup("\n" * word.count("\n") + " " * len(word.rpartition("\n")[2].expandtabs(4))))
        else:
            shown = escape(without_hidden(word))
            parts.append(Markup("<mark>{}</mark>").format(shown) if differs else shown)
    return Markup("").join(parts)
