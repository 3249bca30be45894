"""The chat templates of a checkpoint, from the places that keep them, as transformers 5 believes them.

``chat_template.jinja`` with its siblings in ``additional_chat_templates/`` counts before
``tokenizer_config.json`` (text, a list of named ones, or an object of them), and that before
``chat_template.json``, which is a processor's. ``null``, empty text and what is no text are absent: a reader
that takes them at their word loses the template that stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from qexport.checkpoint.config import decoded, parse_json
from qexport.checkpoint.layout import TEMPLATE_FOLDER

TEMPLATE_FILE = "chat_template.jinja"
_TOKENIZER = "tokenizer_config.json"
PROCESSOR = "chat_template.json"
_PLACES = (TEMPLATE_FILE, _TOKENIZER, PROCESSOR)
DEFAULT = "default"
# Which of several is used for a plain conversation where none is called default; else the first.
_FOR_CHATS = ("chat", "instruct", "chatml", "tool_use")


@dataclass(frozen=True)
class ChatTemplates:
    """What was found.

    Attributes:
        places: templates by name, by the file that has them (the folder's count as the jinja file's).
        hollow: files that have a place for a template and nothing in it.
    """

    places: Mapping[str, Mapping[str, str]]
    hollow: tuple[str, ...] = ()

    @cached_property
    def named(self) -> dict[str, str]:
        """All of them by name; the place that is believed first wins."""
        merged: dict[str, str] = {}
        for found in reversed(list(self.places.values())):
            merged |= found
        return merged

    @cached_property
    def chosen(self) -> str:
        """The name of the one that a plain conversation goes through; empty where there is none at all."""
        if DEFAULT in self.named:
            return DEFAULT
        first = next(iter(self.places.values()), {})
        return next((name for name in (*_FOR_CHATS, *first) if name in first), "")

    @property
    def default(self) -> str | None:
        """Its text."""
        return self.named.get(self.chosen)


def template_files(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that may hold templates."""
    return [name for name in names if name in _PLACES or _in_folder(name)]


def read_templates(files: Mapping[str, bytes], label: str) -> ChatTemplates:
    """The templates among a checkpoint's small files.

    Raises:
        InputError: a file that may hold one is not UTF-8, or not JSON.
    """
    places: dict[str, Mapping[str, str]] = {}
    hollow: list[str] = []
    for place in _PLACES:
        raw: list[tuple[Any, Any]] = []
        if place == TEMPLATE_FILE:
            paths = [(DEFAULT, place)] if place in files else []
            paths += [(PurePosixPath(name).stem, name) for name in sorted(files) if _in_folder(name)]
            raw = [(name, decoded(files[path], f"{label}: {path}")) for name, path in paths]
        elif place in files:
            document = parse_json(files[place], f"{label}: {place}")
            raw = _entries(document["chat_template"]) if "chat_template" in document else []
        found = {name: text for name, text in raw if _says_something(name) and _says_something(text)}
        if found:
            places[place] = found
        # What the folder adds by name hides nothing when it is empty.
        if place in files and any(not _says_something(text) for _, text in raw[:1]):
            hollow.append(place)
    return ChatTemplates(places, tuple(hollow))


def _entries(value: Any) -> list[tuple[Any, Any]]:
    """``(name, text)`` of every template in a JSON value."""
    if isinstance(value, list):
        return [(row.get("name"), row.get("template")) for row in value if isinstance(row, Mapping)]
    if isinstance(value, Mapping):
        return list(value.items())
    return [(DEFAULT, value)]


def _says_something(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _in_folder(name: str) -> bool:
    path = PurePosixPath(name)
    return path.parent == PurePosixPath(TEMPLATE_FOLDER) and path.suffix == ".jinja"
