"""Text of receipts, models and people, made fit for the place where it is shown.

A receipt may come from anywhere, a model is named by whoever trained it, and a card is read and pasted from
by people who know neither. So nothing of them is markup: it is text in Markdown, in a code span, in HTML, in
a command. Characters that nobody sees, or that turn what others see around, are dropped everywhere.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import escape

if TYPE_CHECKING:
    from jinja2 import Template

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,95}", re.ASCII)
"""Labels and kinds of artifacts: they stand in file names, tags and commands."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_WEB = re.compile(r"https?://[^\s<>\"'`\\/()]+(/[^\s<>\"'`\\]*)?")
# Control and format characters (bidi marks among them), surrogates, private use, unassigned.
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))
_LONGEST = 2000
# Of Markdown, wherever they stand; an underscore inside a word is none.
_MARKUP = re.compile(r"[\\`*\[\]|~$<]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}  # a backslash would do in Markdown, and nowhere else
# Of Markdown at the beginning of a line.
_FIRST = re.compile(r"^(?:>|[#+-](?=[#\s]|$)|[-=](?=[-=])|\d{1,9}(?=[.)](?:\s|$)))")


def without_hidden(text: str) -> str:
    r"""``text`` without characters that are not seen; line ends and tabs become blanks.

    >>> without_hidden("a\x1b[31m\u202eb\nc")
    'a[31mb c'
    """
    spaced = re.sub(r"\s", " ", text)
    return "".join(c for c in spaced if c == " " or unicodedata.category(c) not in _HIDDEN)


def visible(text: object) -> str:
    """One line of text: nothing hidden, single blanks, and no book."""
    return " ".join(without_hidden(str(text)[: 2 * _LONGEST]).split())[:_LONGEST].rstrip()


def cell(text: object) -> str:
    r"""Text for a line or a table's cell of Markdown: none of it is markup.

    >>> print(cell("a|b\n<c> [d](javascript:e)"))
    a\|b &lt;c> \[d\](javascript:e)
    """
    escaped = _MARKUP.sub(lambda m: _ENTITIES.get(m[0], f"\\{m[0]}"), visible(text))
    return _FIRST.sub(lambda m: f"{m[0]}\\" if m[0].isdigit() else f"\\{m[0]}", escaped)


def code(text: object) -> str:
    """A code span of Markdown, outside of tables."""
    shown = visible(text) or " "
    fence = "`" * (max((len(run) for run in re.findall(r"`+", shown)), default=0) + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def fenced(text: object) -> str:
    """Lines of text in a block of Markdown that shows them as they are; empty for no text."""
    lines = [without_hidden(line) for line in str(text)[: 2 * _LONGEST].splitlines()]
    shown = "\n".join(lines).replace("<!--", "<!\\--").strip("\n")
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{shown}\n{fence}" if shown else ""


def html_text(text: object) -> str:
    """Text between tags, or in an attribute."""
    return str(escape(visible(text)))


def hub_link(repo: object) -> str:
    """A repository as a link to the Hub; what is no repository's id, as text."""
    name = str(repo)
    if not _HUB_ID.fullmatch(name):
        return code(name)
    return f"[{cell(name)}](https://huggingface.co/{quote(name)})"


@dataclass(frozen=True)
class Markup:
    """How text of receipts is set into sentences: words, names (of files, commits), ids on the Hub."""

    text: Callable[[Any], str] = str
    name: Callable[[Any], str] = str
    link: Callable[[Any], str] = str


PLAIN = Markup()
MARKDOWN = Markup(cell, code, hub_link)


@cache
def template(package: str, name: str, *, html: bool = False) -> Template:
    """A Jinja template of a package, with filters for texts of receipts.

    Args:
        html: everything that is put in is escaped, and without what nobody sees.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=html,
        finalize=(lambda value: without_hidden(value) if type(value) is str else value) if html else None,
    )
    environment.filters |= {"cell": cell, "code": code, "html": html_text, "hub": hub_link}
    environment.filters["py"] = lambda text: json.dumps(visible(text), ensure_ascii=False)
    return environment.from_string(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def is_web_link(text: str) -> bool:
    """Whether it is an http or https address, with a host and without blanks or hidden characters."""
    return _WEB.fullmatch(text) is not None and visible(text) == text
