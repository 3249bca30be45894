"""``--set key.path=value``: a recipe's tree with some values replaced.

The value is YAML, as it would stand in the file. An entry of a list is named by its ``name``, by the one key
that says what it is (``artifacts.mlx.mlx.bits``), or by its number from 0. Null takes a key away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.checkpoint.yaml_tree import Items, Place, Table, Word, parse_yaml
from qexport.formats.registry import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qexport.checkpoint.yaml_tree import Node
    from qexport.recipe.problems import Problems


def with_overrides(root: Node, assignments: Iterable[str], problems: Problems) -> Node:
    """The tree after every ``path=value``, in turn; what cannot be set is noted."""
    for text in assignments:
        path, equals, value = text.partition("=")
        words, before = path.split("."), len(problems)
        if not equals or not all(words):
            problems.add(Place(f"--set {text}"), "KEY.PATH=VALUE is expected")
            continue
        node = parse_yaml(value, f"--set {path}", problems.add, line=0)
        if len(problems) == before:
            root = _put(root, words, node, Place(f"--set {path}"), problems)
    return root


def _put(node: Node, words: Sequence[str], value: Node, place: Place, problems: Problems) -> Node:
    if not words:
        return value
    word, rest = words[0], words[1:]
    if isinstance(node, Word):
        problems.add(place, f"{word!r} cannot be set: what is above it is one value, {str(node)!r}")
        return node
    if isinstance(node, Items):
        at = _find(node, word)
        if at is None:
            problems.add(place, f"there is no entry {word!r}; there are {', '.join(_names(node)) or 'none'}")
            return node
        items = Items(list(node), node.place)
        items[at] = _put(items[at], rest, value, place, problems)
        return items
    table = Table({}, place, {}) if node is None else Table(dict(node), node.place, dict(node.keys_at))
    table[word] = _put(table.get(word), rest, value, place, problems)
    if not rest or word not in table.keys_at:
        table.keys_at[word] = place
    return table


def _names(items: Items) -> list[str]:
    names: list[str] = []
    for number, item in enumerate(items):
        name = item.get("name") if isinstance(item, Table) else None
        kinds = [key for key in item if key in FORMATS] if isinstance(item, Table) else []
        names.append(str(name) if isinstance(name, Word) else kinds[0] if kinds else str(number))
    return names


def _find(items: Items, word: str) -> int | None:
    names = _names(items)
    if names.count(word) == 1:
        return names.index(word)
    return int(word) if word.isdecimal() and len(word) < 9 and int(word) < len(items) else None
