"""Special tokens by name and where a reply ends, as readers find them.

Names stand in ``tokenizer_config.json``, else in ``special_tokens_map.json``; what neither has, a tokenizer's
class may know. Ids at which a reply ends stand in ``generation_config.json``, else in ``config.json``, alone
or as a list, now and then as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Defaults of the classes' own __init__, for the families here.
_QWEN = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_CLASS_NAMES: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": _LLAMA,
    "GemmaTokenizer": {
        "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>",
    },
    "Qwen2Tokenizer": _QWEN,
    "Qwen3_5Tokenizer": _QWEN,
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
}  # fmt: skip


def token_text(value: Any) -> str | None:
    """A token's text: it stands as such, or as an ``AddedToken`` written out."""
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) and value else None


def special_names(
    settings: Mapping[str, Any], mapped: Mapping[str, Any], *, by_class: bool = True
) -> dict[str, str]:
    """``eos_token`` and the like.

    Args:
        settings: ``tokenizer_config.json``.
        mapped: ``special_tokens_map.json``.
        by_class: also what the tokenizer's class takes where neither has the key.
    """
    known = (
        _CLASS_NAMES.get(str(settings.get("tokenizer_class")).removesuffix("Fast"), {}) if by_class else {}
    )
    found: dict[str, str] = {}
    for key in (f"{kind}_token" for kind in KINDS):
        text = token_text(settings.get(key)) or token_text(mapped.get(key))
        if text is None and key not in settings:  # null says that there is none
            text = known.get(key)
        if text is not None:
            found[key] = text
    return found


def as_ids(value: Any) -> list[int]:
    """A token id or a list of them, numbers or numbers as text; what is none is left out."""
    found: list[int] = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, bool):
            continue
        if isinstance(one, str) and one.strip().isdecimal():
            one = int(one)
        if isinstance(one, int | float) and one == one // 1 and one >= 0:
            found.append(int(one))
    return list(dict.fromkeys(found))


def end_ids(generation: Mapping[str, Any], config: Mapping[str, Any], size: int | None = None) -> list[int]:
    """Ids at which a reply ends.

    Args:
        generation: ``generation_config.json``.
        config: ``config.json``, with or without a nested ``text_config``.
        size: of the vocabulary, where it is known: ids beyond it are none.
    """
    text = config.get("text_config")
    nested = text if isinstance(text, Mapping) else {}
    for source in (generation, nested, config):
        if ids := [one for one in as_ids(source.get("eos_token_id")) if size is None or one < size]:
            return ids
    return []
