"""YAML as a tree that remembers the line of every key and value.

PyYAML's ``compose`` keeps marks, but lets a later key replace an earlier one; here that is a problem, since a
recipe with two ``types`` lists would silently lose one. Scalars keep their text: which type it should be is
known where it is read, and a revision such as ``1234567`` or ``1e10`` is text, not a number. Anchors and
aliases work (one table of limits for several artifacts); merge keys (``<<``) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from qexport.recipe.problems import Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.recipe.problems import Problems

__all__ = ["Entry", "Items", "Node", "Scalar", "Table", "parse"]

_DEEPEST = 32  # a recipe needs five levels; aliases that hold themselves have no end


@dataclass(frozen=True)
class Scalar:
    """One value. ``plain``: written without quotes, so that ``true`` and ``3`` are more than text."""

    text: str
    plain: bool
    place: Place

    @property
    def null(self) -> bool:
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class Items:
    """A list."""

    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True)
class Entry:
    """A key's value, and where the key stands."""

    value: Node
    place: Place


@dataclass(frozen=True)
class Table:
    """A mapping with text for keys."""

    entries: Mapping[str, Entry]
    place: Place

    def get(self, key: str) -> Node | None:
        """The value of a key; ``None`` where it is not there or is null."""
        entry = self.entries.get(key)
        if entry is None or (isinstance(entry.value, Scalar) and entry.value.null):
            return None
        return entry.value


Node = Scalar | Items | Table


def parse(text: str, source: str, problems: Problems) -> Node | None:
    """The tree of a document; ``None`` where it is empty or not YAML, which is then a problem.

    Args:
        source: the file's name for messages, or the option that the text was given with.
    """
    at_line = "\n" in text or not source.startswith("--")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, mark.line + 1 if mark is not None and at_line else 0)
        context = f" {error.context}" if error.context else ""
        problems.add(place, f"this is not YAML: {error.problem or 'unreadable'}{context}")
        return None
    except yaml.YAMLError as error:  # a control character, say
        problems.add(Place(source), f"this is not YAML: {' '.join(str(error).split())}")
        return None
    if node is None:
        if at_line:
            problems.add(Place(source, 1), "the file is empty")
        return None
    return _converted(node, source, problems, 0, lines=at_line)


def _converted(node: yaml.Node, source: str, problems: Problems, depth: int, *, lines: bool) -> Node:
    place = Place(source, node.start_mark.line + 1 if lines else 0)
    if depth > _DEEPEST:
        problems.add(place, "nested too deeply, or an alias that holds itself")
        return Scalar("", False, place)
    if isinstance(node, yaml.ScalarNode):
        return Scalar(node.value, node.style is None, place)
    if isinstance(node, yaml.SequenceNode):
        found = (_converted(each, source, problems, depth + 1, lines=lines) for each in node.value)
        return Items(tuple(found), place)
    entries: dict[str, Entry] = {}
    for key, value in node.value:
        at = Place(source, key.start_mark.line + 1 if lines else 0)
        if not isinstance(key, yaml.ScalarNode):
            problems.add(at, "a key must be a word")
            continue
        if key.value in entries:
            first = entries[key.value].place
            problems.add(at, f"{key.value!r} is there twice; the first is in line {first.line}")
            continue
        entries[key.value] = Entry(_converted(value, source, problems, depth + 1, lines=lines), at)
    return Table(entries, place)
