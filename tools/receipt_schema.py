"""The JSON Schema of a receipt, made from its types: what they say and nothing else can be read."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from qexport.receipt.typed import key_of, needed, types_of
from qexport.receipt.types import SCHEMA, Receipt

__all__ = ["receipt_schema", "schema_name", "schema_text"]

_PLAIN = {str: "string", float: "number", bool: "boolean"}


def receipt_schema() -> dict[str, Any]:
    """Draft 2020-12. Keys that are not named may be there: a later version adds some."""
    known: dict[str, Any] = {}
    top = _of(Receipt, known)
    root = known.pop(top["$ref"].rpartition("/")[2])
    root["properties"]["schema"] = {"const": SCHEMA}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "qexport.json",
        **root,
        "required": ["schema", "artifacts"],
        "$defs": dict(sorted(known.items())),
    }


def schema_text() -> str:
    """docs/receipt.schema.json."""
    return json.dumps(receipt_schema(), indent=2) + "\n"


def _of(kind: Any, known: dict[str, Any]) -> dict[str, Any]:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(arg, known) if arg is not type(None) else {"type": "null"} for arg in args]}
    if origin is tuple:
        return {"type": "array", "items": _of(args[0], known)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _of(args[1], known)}
    if origin is Literal:
        return {"enum": list(args)}
    if is_dataclass(kind) and isinstance(kind, type):
        return _object(kind, known)
    if issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    return {"type": "integer", "minimum": 0} if kind is int else {"type": _PLAIN[kind]}


def schema_name(cls: type) -> str:
    """What a type is called under ``$defs``."""
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _object(cls: type, known: dict[str, Any]) -> dict[str, Any]:
    name = schema_name(cls)
    if name not in known:
        known[name] = {}
        known[name] = {
            "type": "object",
            "description": (cls.__doc__ or "").partition("\n")[0],
            "properties": {key_of(each): _of(kind, known) for each, kind in types_of(cls)},
            "required": [key_of(each) for each, _ in types_of(cls) if needed(each)],
        }
    return {"$ref": f"#/$defs/{name}"}
