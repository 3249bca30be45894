"""From a value in a recipe to a value of the type that a field is declared with.

Types are read from annotations: text, numbers, booleans, paths, sizes, choices (``Literal`` or an enum),
tuples, pairs, mappings, ``X | None``. Text is what stands there, whatever YAML would make of it; a number or
a boolean must look like one.
"""

from __future__ import annotations

import enum
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from qexport.recipe.problems import closest
from qexport.recipe.size import parse_size
from qexport.recipe.tree import Items, Node, Scalar, Table

if TYPE_CHECKING:
    from qexport.recipe.problems import Problems

__all__ = ["WRONG", "Reader", "read_path", "read_size", "read_value"]


class _Wrong(enum.Enum):
    WRONG = enum.auto()


WRONG = _Wrong.WRONG
"""What a reader gives where it has noted a problem."""

Reader = Callable[[Node, "Problems"], Any]
"""Reads one value, and notes what is wrong with it."""

_TRUE, _FALSE = ("true", "True", "yes", "on"), ("false", "False", "no", "off")


def read_value(node: Node, kind: Any, problems: Problems) -> Any:
    """The value of ``node`` as ``kind``, an annotation; or ``WRONG`` after noting what is wrong."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if isinstance(node, Scalar) and node.null and type(None) in args:
            return None
        (inner,) = [arg for arg in args if arg is not type(None)]
        return read_value(node, inner, problems)
    if origin is tuple and args[-1] is Ellipsis:
        pairs = get_origin(args[0]) is tuple
        return _pairs(node, problems) if pairs else _items(node, args[0], problems)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _table(node, args[1], problems)
    if not isinstance(node, Scalar):
        return _wrong(node, _words(kind), problems)
    if origin is Literal:
        return _choice(node, {str(arg): arg for arg in args}, problems)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _choice(node, {str(member.value): member for member in kind}, problems)
    return _scalar(node, kind, problems)


def read_size(node: Node, problems: Problems) -> Any:
    """A size in bytes, such as ``2G``."""
    if isinstance(node, Scalar):
        if node.null:
            return None
        size = parse_size(node.text.replace("_", ""))
        if size is not None:
            return size
    return _wrong(node, "a size such as 2G or 500M", problems)


def read_path(node: Node, problems: Problems, folder: Path) -> Any:
    """A path, relative to the recipe's folder."""
    if isinstance(node, Scalar) and node.null:
        return None
    text = read_value(node, str, problems)
    return text if text is WRONG else folder / Path(text).expanduser()


def _scalar(node: Scalar, kind: Any, problems: Problems) -> Any:
    text = node.text
    if kind is str:
        if node.null or (node.plain and text in (*_TRUE, *_FALSE)):
            return _wrong(node, "text (put it in quotes)", problems)
        return text
    if kind is Path:
        return Path(text)
    if kind is bool and node.plain and text in (*_TRUE, *_FALSE):
        return text in _TRUE
    if kind is int and node.plain:
        try:
            return int(text)
        except ValueError:
            return _wrong(node, "a whole number", problems)
    if kind is float and node.plain:
        try:
            number = float(text)
        except ValueError:
            return _wrong(node, "a number", problems)
        return number if math.isfinite(number) else _wrong(node, "a number", problems)
    return _wrong(node, _words(kind), problems)


def _choice(node: Scalar, known: dict[str, Any], problems: Problems) -> Any:
    if node.text in known:
        return known[node.text]
    problems.add(node.place, f"{node.text!r} is not one of {', '.join(known)}{_near(node.text, known)}")
    return WRONG


def _near(word: str, known: dict[str, Any]) -> str:
    guess = closest(word, known)
    return guess if guess.startswith("; did") else ""


def _items(node: Node, kind: Any, problems: Problems) -> Any:
    if not isinstance(node, Items):
        return _wrong(node, f"a list of {_words(kind, many=True)}", problems)
    found = [read_value(each, kind, problems) for each in node.items]
    return WRONG if WRONG in found else tuple(found)


def _pairs(node: Node, problems: Problems) -> Any:
    """Ordered pairs of text, written as a mapping."""
    found = _table(node, str, problems)
    return found if found is WRONG else tuple(found.items())


def _table(node: Node, kind: Any, problems: Problems) -> Any:
    if not isinstance(node, Table):
        return _wrong(node, "a mapping", problems)
    found = {key: read_value(entry.value, kind, problems) for key, entry in node.entries.items()}
    return WRONG if WRONG in found.values() else found


def _wrong(node: Node, wanted: str, problems: Problems) -> Any:
    if isinstance(node, Scalar):
        got = "nothing" if node.null else repr(node.text)
    else:
        got = "a list" if isinstance(node, Items) else "a mapping"
    problems.add(node.place, f"{wanted} is expected here, not {got}")
    return WRONG


def _words(kind: Any, *, many: bool = False) -> str:
    one, more = {
        str: ("text", "texts"),
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        bool: ("true or false", "true or false"),
        Path: ("a path", "paths"),
    }.get(kind, ("one value", "values"))
    return more if many else one
