"""Reading a checkpoint's JSON files, and finding the language model's part of its config."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from qexport.checkpoint.tensors import Checkpoint
from qexport.errors import InputError

LFS_POINTER = b"version https://git-lfs"
LFS_HINT = "Fetch the real file with `git lfs pull`, or download it with `hf download`."
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
# Multimodal configs keep the language model's settings one level down, under one of these names:
# transformers' own (Qwen3.5, Gemma 3, Llama 4), InternVL's and DeepSeek-VL's.
TEXT_KEYS = ("text_config", "llm_config", "language_config")


def read_json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The JSON object in file ``name`` of ``checkpoint``.

    ``NaN`` and ``Infinity`` are taken, as transformers writes them (``time_step_limit`` of Mamba configs).

    Raises:
        InputError: there is no such file, it is not UTF-8, starts with a byte order mark, is not JSON, or is
            JSON but not an object.
    """
    return parse_json(checkpoint.read_file(name), f"{checkpoint.label}: {name}")


def parse_json(
    data: bytes, what: str, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> dict[str, Any]:
    """The JSON object in ``data``, called ``what`` in messages.

    Args:
        pairs: makes an object of its names and values, where ``dict`` is not enough.

    Raises:
        InputError: as :func:`read_json`.
    """
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        hint = "Save it again as UTF-8 without BOM; transformers cannot read it either."
        raise InputError(f"{what} starts with a byte order mark.", hint=hint)
    if data.startswith(LFS_POINTER):
        raise InputError(f"{what} is a Git LFS pointer, not the file itself.", hint=LFS_HINT)
    text = decoded(data, what)
    try:
        loaded = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        hint = "Correct the file, or copy it again from the base model."
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{what} is not JSON: {error.msg} ({where}).", hint=hint) from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of thousands of digits
        raise InputError(
            f"{what} is not JSON that can be read: nested too deeply or a number too long."
        ) from error
    if _HALF.search(data) and not is_text(json.dumps(loaded, ensure_ascii=False)):
        raise InputError(f"{what} spells half of a surrogate pair, which is no text (\\ud800 or the like).")
    if not isinstance(loaded, dict):
        hint = "Copy the file again from the base model."
        raise InputError(f"{what} holds a JSON {type(loaded).__name__}, not an object.", hint=hint)
    return loaded


def decoded(data: bytes, what: str) -> str:
    """``data``, called ``what`` in messages, as text. Raises InputError where it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        hint = "Save it again as UTF-8."
        raise InputError(f"{what} is not UTF-8 (byte {error.start}).", hint=hint) from None


def is_text(text: str) -> bool:
    """Whether ``text`` has a UTF-8 form: JSON escapes can spell half of a surrogate pair, which has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of ``config`` that describes the language model: a nested config, else ``config`` itself.

    Raises:
        InputError: the nested config is there and not an object.
    """
    for key in TEXT_KEYS:
        nested = config.get(key)
        if nested is None:
            continue
        if not isinstance(nested, dict):
            hint = "Copy config.json again from the base model."
            raise InputError(f"config.json: {key} is not an object.", hint=hint)
        return nested
    return config
