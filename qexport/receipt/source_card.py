"""What a receipt carries of the source's own model card: licence, language and task, where they are plain."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.front_matter import read_front_matter
from qexport.formats.gguf.host_paths import holds_host_path
from qexport.receipt.safe_text import LABEL, is_web_link, visible

if TYPE_CHECKING:
    from collections.abc import Mapping


FROM_SOURCE = ("license", "license_name", "license_link", "language", "pipeline_tag")
_FILE = re.compile(r"[\w.-]+", re.ASCII)  # such as LICENSE, in the repository itself
_FRONT = re.compile(r"\A\ufeff?---\n.*?\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_PROSE = re.compile(r"[^\W\d_]|\*\*|\[(?!!)")  # no heading, list, table, code, badge, quote or tag
_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)")
_TAG = re.compile(r"<[^<>\n]*>|https?://\S+")
_MARKS = re.compile(r"[*`~]+")
_SHORTEST, _LONGEST = 20, 400


def source_card(readme: bytes | None) -> dict[str, Any]:
    """Of a README.md, as plain JSON."""
    return plain_card(read_front_matter(readme, []))


def plain_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """What of a card's front matter can be passed on: a receipt may be anybody's."""
    found = {key: card[key] for key in FROM_SOURCE if _is_plain(card.get(key))}
    for key in ("license", "language", "pipeline_tag"):  # words that the Hub has a list of
        words = found.get(key, [])
        if not all(LABEL.fullmatch(w) for w in (words if isinstance(words, list) else [words])):
            del found[key]
    link = found.get("license_link")
    if link is not None and not (isinstance(link, str) and (is_web_link(link) or _FILE.fullmatch(link))):
        del found["license_link"]
    return found


def description_of(readme: bytes | None) -> str:
    r"""What a README.md says of its model: a description in the front matter, else its first words of prose.

    >>> description_of(b"---\nlicense: mit\n---\n# M\n\n![x](y)\n\nTuned on **letters**, see [here](z)!")
    'Tuned on letters, see here!'
    """
    front = read_front_matter(readme, [])
    given = next((front[key] for key in ("description", "summary") if isinstance(front.get(key), str)), None)
    text = (readme or b"").decode("utf-8", errors="replace")
    body = _FRONT.sub("", text.replace("\r\n", "\n"), count=1)
    prose = (_plain_words(part) for part in re.split(r"\n\s*\n", body) if _PROSE.match(part))
    words = visible(given) if given else next((each for each in prose if len(each) >= _SHORTEST), "")
    return "" if holds_host_path(words) else _shortened(words)


def _plain_words(markdown: str) -> str:
    """A paragraph without links, images, emphasis and tags."""
    return visible(_MARKS.sub("", _TAG.sub("", _LINK.sub(r"\1", markdown))))


def _shortened(words: str) -> str:
    """Whole sentences, as far as there is room for them."""
    if len(words) <= _LONGEST:
        return words
    cut = words[:_LONGEST]
    whole = cut[: cut.rfind(". ") + 1]
    return whole or cut.rsplit(" ", 1)[0] + " …"


def _is_plain(value: object) -> bool:
    """A word or a list of words, none of them a path of the machine that made the source."""
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(
        isinstance(w, str) and w and w == visible(w) and not holds_host_path(w) for w in words
    )
