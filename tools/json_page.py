"""docs/json.md, made from the types of documents."""

from __future__ import annotations

from dataclasses import is_dataclass
from types import UnionType
from typing import Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

from qexport.cli._documents import DOCUMENTS
from receipt_schema import schema_name

__all__ = ["json_page"]

_HEAD = """# What `--json` prints

Made from the program by `make docs`; tests hold real outputs against it.

`--json` prints exactly one document on stdout, whatever happens: words and bars go to stderr, and a command
that fails before it has a result prints an error. The exit code says the same as without it. Keys that are
named here stay; later versions may add some. Numbers that are called bytes are exact. What receipts have,
too, is in [receipt.schema.json](receipt.schema.json) under its name.
"""


def json_page() -> str:
    """The page."""
    shown: dict[str, Any] = {}
    parts = [_HEAD]
    waiting = list(DOCUMENTS.values())
    while waiting:
        kind = waiting.pop(0)
        if kind.__name__ not in shown:
            shown[kind.__name__] = kind
            parts.append(_section(kind))
            waiting += [each for each in _inner(kind) if each.__name__ not in shown]
    return "\n".join(parts)


def _section(kind: Any) -> str:
    doc = (kind.__doc__ or "").strip()
    lines = [f"## {kind.__name__}", "", doc, "", "| key | value | |", "|---|---|---|"]
    for name, hint in get_type_hints(kind, include_extras=True).items():
        kept, words, needed = _unwrapped(hint)
        said = "; ".join(each for each in (words, "" if needed else "not always there") if each)
        lines.append(f"| `{name}` | {_words(kept)} | {said} |")
    return "\n".join([*lines, ""])


def _unwrapped(hint: Any) -> tuple[Any, str, bool]:
    """The type, what is said of it, and whether it is always there."""
    needed = get_origin(hint) is not NotRequired
    if not needed:
        (hint,) = get_args(hint)
    if hasattr(hint, "__metadata__"):
        return hint.__origin__, str(hint.__metadata__[0]), needed
    return hint, "", needed


def _words(kind: Any) -> str:
    if kind is type(None):
        return "null"
    if kind is Any:
        return "anything"
    if is_typeddict(kind):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    if is_dataclass(kind) and isinstance(kind, type):
        return f"[{schema_name(kind)}](receipt.schema.json)"
    if isinstance(kind, UnionType):
        return " or ".join(_words(each) for each in get_args(kind))
    if get_origin(kind) is list:
        return f"list of {_words(get_args(kind)[0])}"
    if get_origin(kind) is not None:
        inner = get_args(kind)[1]
        return "mapping" if inner is Any else f"mapping to {_words(inner)}"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[kind]


def _inner(kind: Any) -> list[Any]:
    found: list[Any] = []
    for hint in get_type_hints(kind).values():
        parts = [hint, *get_args(hint), *(inner for each in get_args(hint) for inner in get_args(each))]
        found += [each for each in parts if is_typeddict(each)]
    return found
