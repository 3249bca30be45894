"""Documents of ``--json`` against the types that docs/json.md is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from qexport.receipt.typed import Unfit, fit


def misfits(kind: Any, value: Any, where: str = "it") -> list[str]:
    """Where a value is not what the type says."""
    if kind is Any:
        return []
    if isinstance(kind, UnionType):
        each = [misfits(one, value, where) for one in get_args(kind)]
        return [] if [] in each else [found for one in each for found in one]
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        hints = get_type_hints(kind)
        wrong = [f"{where}.{key} is not said" for key in value if key not in hints]
        wrong += [f"{where}.{key} is missing" for key in kind.__required_keys__ - value.keys()]
        inner = [misfits(hints[key], value[key], f"{where}.{key}") for key in value if key in hints]
        return wrong + [found for one in inner for found in one]
    if is_dataclass(kind):  # a part of receipts: what has to be there is, and all that is there fits
        notes: list[str] = []
        try:
            fit(kind, value, where, notes)
        except Unfit as error:
            notes.append(str(error))
        return notes
    if get_origin(kind) is list:
        if not isinstance(value, list):
            return [f"{where} is no list"]
        (item,) = get_args(kind)
        return [
            found for number, each in enumerate(value) for found in misfits(item, each, f"{where}[{number}]")
        ]
    if get_origin(kind) is Mapping:
        if not isinstance(value, dict):
            return [f"{where} is no mapping"]
        return [
            found
            for key, each in value.items()
            for found in misfits(get_args(kind)[1], each, f"{where}.{key}")
        ]
    if kind is type(None):
        return [] if value is None else [f"{where} is not null"]
    fits = isinstance(value, int | float if kind is float else kind)
    return (
        [] if fits and (kind is bool or not isinstance(value, bool)) else [f"{where} is {value!r}, no {kind}"]
    )
