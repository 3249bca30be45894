"""A tokenizer as transformers 5 makes it from its class, where that is not what tokenizer.json says.

Some classes take vocabulary and merges from the file and build the rest anew. Where the two cut text
otherwise, readers of the file (llama.cpp, the tokenizers library) and users of the class (transformers,
mlx-lm, vLLM) give a model different tokens: a fact about the source, which every export carries on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

_SPACE = "\u2581"
_WORDS = (
    "Hello, world!  Two words.",
    " a leading blank\n\n\tand 12345 digits, it's 3.14",
    "Größe, кошка, 我想在苹果, नमस्ते दुनिया, ครับ 🚀",
)

Rules = dict[str, Any]


def _llama(settings: Mapping[str, Any]) -> Rules:
    scheme = "always" if settings.get("legacy") else "first"
    scheme = "never" if settings.get("add_prefix_space") is False else scheme
    space = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False}
    return {"normalizer": None, "pre_tokenizer": space}


def _gemma(_: Mapping[str, Any]) -> Rules:
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": cut,
    }


def _gpt2(settings: Mapping[str, Any]) -> Rules:
    prefix = bool(settings.get("add_prefix_space"))
    level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
    return {"normalizer": None, "pre_tokenizer": level}


_RULES: Mapping[str, Callable[[Mapping[str, Any]], Rules]] = {
    "LlamaTokenizer": _llama,
    "GemmaTokenizer": _gemma,
    "GPT2Tokenizer": _gpt2,
}


def class_differs(document: Mapping[str, Any], settings: Mapping[str, Any], usual: str | None) -> str | None:
    """Where the class cuts text otherwise than the file; ``None`` where it does not, or is not known.

    Args:
        document: ``tokenizer.json``.
        settings: ``tokenizer_config.json``.
        usual: the class that transformers takes for the family where the settings name none.
    """
    name = str(settings.get("tokenizer_class") or usual).removesuffix("Fast")
    model = document.get("model")
    if name not in _RULES or not isinstance(model, Mapping) or model.get("type") != "BPE":
        return None
    rules = _RULES[name](settings)
    if all(document.get(key) == rule for key, rule in rules.items()):
        return None
    from tokenizers import Tokenizer

    try:
        file, made = (Tokenizer.from_str(json.dumps(each)) for each in (document, {**document, **rules}))
        special = [row["content"] for row in document.get("added_tokens") or [] if row.get("special")]
        texts = [*_WORDS, *(f"one {token}two" for token in special[:4])]
        other = [text for text in texts if _ids(file, text) != _ids(made, text)]
    except Exception:  # noqa: BLE001  # the library raises nothing narrower; others say what is wrong with it
        return None
    if not other:
        return None
    return f"tokenizer_class is {name}, which cuts {other[0]!r} otherwise than tokenizer.json does"


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
