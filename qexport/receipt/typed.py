"""Frozen dataclasses from JSON that anybody may have written, and back to JSON.

Reading never raises for what is inside: text that is no text, numbers that are none, values of another type
are left out with a note, and so is an item that lacks what it must have. What is left is of the type that the
dataclass says, whatever the file held.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
MAX_BYTES = 32 << 20
"""No receipt is larger; what is, is not read."""
_MAX_DEPTH = 32
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_MAX_COUNT = 2**63 - 1
# Controls (terminals obey them) and halves of surrogate pairs (no UTF-8 form).
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Unfit(ValueError):
    """A value that is not what is asked for; a clause that continues a sentence about it."""


def parse(data: bytes) -> Any:
    """JSON whose text is clean, whose numbers are finite, and whose depth is bounded.

    Raises:
        ValueError: it is none, too large or too deep.
    """
    if len(data) > MAX_BYTES:
        raise Unfit(f"it has more than {MAX_BYTES >> 20} MiB")
    try:
        return _clean(json.loads(data.decode("utf-8"), parse_constant=lambda _: None, parse_int=_integer), 0)
    except RecursionError as error:
        raise Unfit("it is nested too deeply") from error
    except ValueError as error:
        raise error if isinstance(error, Unfit) else Unfit("it is not JSON") from error


def _integer(text: str) -> int | None:
    return int(text) if len(text) <= 20 else None


def _clean(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise Unfit("it is nested too deeply")
    if isinstance(value, str):
        return _NO_TEXT.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_clean(inner, depth + 1) for inner in value]
    if isinstance(value, dict):
        return {_NO_TEXT.sub("\ufffd", key): _clean(inner, depth + 1) for key, inner in value.items()}
    return value


def fit(kind: Any, value: Any, where: str, notes: list[str]) -> Any:
    """``value`` as a ``kind``; parts that do not fit and need not be there are left out and noted.

    Args:
        where: what to call the value in notes.

    Raises:
        Unfit: it is no such thing, or lacks what it must have.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        if value is None:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        return fit(inner, value, where, notes)
    if origin is tuple:
        return tuple(_items(args[0], enumerate(_is(list, value, where)), where, notes).values())
    if origin is Mapping:
        return _items(args[1], _is(dict, value, where).items(), where, notes)
    if origin is Literal:
        if value not in args:
            raise Unfit(f"{where} is none of {', '.join(map(str, args))}")
        return value
    if is_dataclass(kind):
        return _object(kind, _is(dict, value, where), where, notes)
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError as error:
            raise Unfit(f"{where} is not known") from error
    if kind is float:
        return float(_is((int, float), value, where))
    if kind is int and not 0 <= _is(int, value, where) <= _MAX_COUNT:
        raise Unfit(f"{where} is no count")
    return _is(kind, value, where)


def _is(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Unfit(f"{where} is of another type")
    return value


def _items(kind: Any, items: Any, where: str, notes: list[str]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, item in items:
        try:
            found[key] = fit(kind, item, f"{where}[{str(key)[:40]}]", notes)
        except Unfit as error:
            notes.append(f"{error}: left out")
    return found


def _object(cls: Any, value: Mapping[str, Any], where: str, notes: list[str]) -> Any:
    found: dict[str, Any] = {}
    for each, kind in types_of(cls):
        key = key_of(each)
        if key in value:
            try:
                found[each.name] = fit(kind, value[key], f"{where}.{key}", notes)
                continue
            except Unfit as error:
                if needed(each):
                    raise
                notes.append(f"{error}: left out")
        elif needed(each):
            raise Unfit(f"{where} has no {key}")
    try:
        return cls(**found)
    except ValueError as error:
        raise Unfit(f"{where}: {error}") from error


@cache
def types_of(cls: type) -> tuple[tuple[Field[Any], Any], ...]:
    """The fields that JSON has, with their types."""
    hints = get_type_hints(cls)
    return tuple((each, hints[each.name]) for each in fields(cls) if key_of(each))


def key_of(each: Field[Any]) -> str:
    """The key of a field in JSON; empty: it is not there."""
    return str(each.metadata.get("json", each.name))


def needed(each: Field[Any]) -> bool:
    """Whether a value without this field is none."""
    return each.default is MISSING and each.default_factory is MISSING


def as_json(value: Any) -> Any:
    """Plain, strict JSON: no tuples, no NaN or infinity. Empty fields that need not be there are not.

    What a dataclass calls ``derived`` follows from its fields: readers should not have to work it out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((each, getattr(value, each.name)) for each, _ in types_of(type(value)))
        made = ((each, as_json(inner)) for each, inner in pairs)
        kept = {key_of(each): inner for each, inner in made if needed(each) or inner not in _EMPTY}
        return kept | getattr(value, "derived", {})
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else str(value)
    return value
