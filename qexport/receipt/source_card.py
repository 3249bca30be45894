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


def _is_plain(value: object) -> bool:
    """A word or a list of words, none of them a path of the machine that made the source."""
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(
        isinstance(w, str) and w and w == visible(w) and not holds_host_path(w) for w in words
    )
