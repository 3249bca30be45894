"""JSON as the official safetensors reader takes it, where Python's own parser is laxer.

The header is read there by serde_json into sizes of type usize: no number is negative (``-0`` included),
fractional or beyond 64 bits, no NaN, no half of a surrogate pair. On top of that a key given twice is
refused, of which either parser keeps the last.
"""

from __future__ import annotations

import json
from typing import Any

MAX_SIZE = 2**64 - 1


def load_object(text: bytes) -> dict[str, Any]:
    """The JSON object in ``text``, in which every number is an ``int`` from 0 to 2**64 - 1.

    Raises:
        ValueError: anything else, as a clause that continues a sentence about the file.
    """
    try:
        loaded = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_natural,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except UnicodeDecodeError as error:
        raise ValueError("its header is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is not JSON ({error.msg} at character {error.pos})") from error
    if not isinstance(loaded, dict):
        raise ValueError("its header is not a JSON object")
    return loaded


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if not is_text(key):
            raise ValueError(f"its header has a name that is not valid text: {key!a}")
        if key in result:
            raise ValueError(f"its header has {key!r} twice")
        result[key] = value
    return result


def is_text(text: str) -> bool:
    """Whether ``text`` has a UTF-8 form: JSON escapes can spell half of a surrogate pair, which has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _natural(text: str) -> int:
    # Length first: Python takes quadratic time for long numbers. "-0" is a float to the official reader.
    if text.startswith("-") or len(text) > 20 or int(text) > MAX_SIZE:
        raise ValueError(f"its header has a size that is negative or beyond 64 bits: {text[:24]}")
    return int(text)


def _refuse_number(text: str) -> int:
    raise ValueError(f"its header has a size that is not a whole number: {text[:24]}")
