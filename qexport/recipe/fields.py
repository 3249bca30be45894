"""A frozen dataclass from a mapping: its fields are the keys, its annotations the types.

So an option class of a format is readable in a recipe as it is, without a schema beside it that could fall
behind. What only a program can give (an importance matrix) is hidden by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from qexport.recipe.problems import closest
from qexport.recipe.tree import Table
from qexport.recipe.values import WRONG, read_value

if TYPE_CHECKING:
    from collections.abc import Collection

    from qexport.recipe.problems import Problems
    from qexport.recipe.tree import Node
    from qexport.recipe.values import Reader

__all__ = ["check_keys", "field_kinds", "read_fields"]

# What option classes import for type checkers only, so that their module does not know it at run time.
_NAMES = {"Path": Path, "Mapping": Mapping, "Sequence": Sequence}


def field_kinds(cls: type, hidden: Collection[str] = ()) -> dict[str, Any]:
    """Field names of a dataclass to their types, without the hidden ones (whose types need not be known)."""
    kinds: dict[str, Any] = {}
    for each in dataclasses.fields(cls):
        if each.name not in hidden:
            holder = type("_", (), {"__annotations__": {each.name: each.type}, "__module__": cls.__module__})
            kinds[each.name] = get_type_hints(holder, localns=dict(_NAMES))[each.name]
    return kinds


def read_fields(
    node: Node | None,
    cls: type,
    problems: Problems,
    *,
    hidden: Collection[str] = (),
    also: Collection[str] = (),
    readers: Mapping[str, Reader] | None = None,
) -> dict[str, Any]:
    """The fields that ``node`` gives, by name; what is wrong is noted and left out.

    Args:
        node: a mapping; ``None`` gives nothing, and required fields are then not asked for.
        hidden: fields that a recipe does not set.
        also: keys that someone else reads.
        readers: how to read a field, instead of by its annotation.
    """
    if node is None:
        return {}
    kinds = field_kinds(cls, hidden)
    if not isinstance(node, Table):
        known = ", ".join((*also, *kinds))
        problems.add(node.place, f"a mapping is expected here, with keys such as {known}")
        return {}
    check_keys(node, (*also, *kinds), problems)
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        if name not in node.entries:
            continue
        value_node = node.entries[name].value
        reader = (readers or {}).get(name)
        value = reader(value_node, problems) if reader else read_value(value_node, kind, problems)
        if value is not WRONG:
            found[name] = value
    for each in dataclasses.fields(cls):
        needed = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if needed and each.name in kinds and each.name not in node.entries:
            problems.add(node.place, f"{each.name!r} is missing")
    return found


def check_keys(node: Table, known: Collection[str], problems: Problems) -> None:
    """Note every key that is not known, with the one that was probably meant."""
    for key, entry in node.entries.items():
        if key not in known:
            problems.add(entry.place, f"unknown key {key!r}{closest(key, known)}")
