"""``--set key.path=value``: a recipe's tree with some values replaced.

The value is YAML, as it would stand in the file. An entry of a list is named by its ``name``, by the one key
that says what it is (``artifacts.mlx.mlx.bits``), or by its number from 0. Null takes a key away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.recipe.kinds import KINDS
from qexport.recipe.problems import Place
from qexport.recipe.tree import Entry, Items, Scalar, Table, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qexport.recipe.problems import Problems
    from qexport.recipe.tree import Node

__all__ = ["with_overrides"]


def with_overrides(root: Node, assignments: Iterable[str], problems: Problems) -> Node:
    """The tree after every ``path=value``, in turn; what cannot be set is noted."""
    for text in assignments:
        path, equals, value = text.partition("=")
        source = f"--set {path}"
        words = path.split(".")
        if not equals or not all(words):
            problems.add(Place(f"--set {text}"), "KEY.PATH=VALUE is expected")
            continue
        node = parse(value, source, problems) if value.strip() else Scalar("", True, Place(source))
        if node is not None:
            root = _put(root, words, node, Place(source), problems)
    return root


def _put(node: Node, words: Sequence[str], value: Node, place: Place, problems: Problems) -> Node:
    if not words:
        return value
    word, rest = words[0], words[1:]
    if isinstance(node, Items):
        at = _find(node, word)
        if at is None:
            problems.add(place, f"there is no entry {word!r}; there are {', '.join(_names(node)) or 'none'}")
            return node
        items = list(node.items)
        items[at] = _put(items[at], rest, value, place, problems)
        return replace(node, items=tuple(items))
    if isinstance(node, Scalar):
        if not node.null:
            problems.add(place, f"{word!r} cannot be set: what is above it is one value, {node.text!r}")
            return node
        node = Table({}, place)
    inner = node.entries[word].value if word in node.entries else Scalar("", True, place)
    made = _put(inner, rest, value, place, problems)
    entries = {**node.entries, word: Entry(made, place if not rest else _at(node, word, place))}
    return replace(node, entries=entries)


def _at(node: Table, word: str, place: Place) -> Place:
    return node.entries[word].place if word in node.entries else place


def _names(items: Items) -> list[str]:
    names: list[str] = []
    for number, item in enumerate(items.items):
        name = item.get("name") if isinstance(item, Table) else None
        kinds = [key for key in item.entries if key in KINDS] if isinstance(item, Table) else []
        if isinstance(name, Scalar):
            names.append(name.text)
        else:
            names.append(kinds[0] if kinds else str(number))
    return names


def _find(items: Items, word: str) -> int | None:
    names = _names(items)
    if names.count(word) == 1:
        return names.index(word)
    return int(word) if word.isdecimal() and int(word) < len(items.items) else None
