"""What the tokenizer files say: token ids, where a turn ends, the chat template in its three places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qexport.doctor.subject import Subject
from qexport.errors import InputError

__all__ = [
    "TEMPLATE_PLACES",
    "begins_something",
    "chat_template",
    "stop_ids",
    "template_places",
    "token_ids",
    "tokenizer_eos",
    "tokenizer_kind",
    "turn_ends",
]

# In the order in which transformers 5 believes them.
TEMPLATE_PLACES = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")
# What ends a turn in the templates of the families here; looked for in the template, so that a base model's
# tokenizer, which has them too, is not told to stop at them.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")
# What begins a turn or a text, and so can end neither, whatever a tokenizer's settings say.
_BEGINNINGS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|begin_of_text|>", "<s>", "<bos>")


def token_ids(subject: Subject) -> Mapping[str, int]:
    """Every token's id from ``tokenizer.json``; empty without one."""
    if subject.tokenizer is None:
        return {}
    try:
        return subject.tokenizer.ids
    except ValueError as error:
        hint = "Copy tokenizer.json again from the base model."
        raise InputError(
            f"{subject.checkpoint.label}: tokenizer.json has no usable vocabulary: {error}.", hint=hint
        ) from None


def tokenizer_kind(subject: Subject) -> str:
    """``BPE (tokenizer.json)`` and the like, or ``none``."""
    document = subject.json_file("tokenizer.json")
    if document is not None:
        model = document.get("model")
        kind = model.get("type") if isinstance(model, Mapping) else None
        return f"{kind or 'unknown'} (tokenizer.json)"
    for name, kind in (("tokenizer.model", "SentencePiece"), ("vocab.json", "BPE")):
        if name in subject.checkpoint.files:
            return f"{kind} ({name})"
    return "none"


def template_places(subject: Subject) -> dict[str, str]:
    """The chat template by the file it is in; where a file has several, the one called ``default``."""
    found: dict[str, str] = {}
    for name in TEMPLATE_PLACES:
        if name.endswith(".jinja"):
            text: Any = subject.text_file(name)
        else:
            text = (subject.json_file(name) or {}).get("chat_template")
        if isinstance(text, list):
            named = {row.get("name"): row.get("template") for row in text if isinstance(row, Mapping)}
            text = named.get("default")
        if isinstance(text, str):
            found[name] = text
    return found


def chat_template(subject: Subject) -> str | None:
    """The template that transformers 5 would use."""
    return next(iter(template_places(subject).values()), None)


def turn_ends(subject: Subject) -> list[str]:
    """The tokens that end a turn in the chat template."""
    template = chat_template(subject) or ""
    return [token for token in _TURN_ENDS if token in template]


def tokenizer_eos(subject: Subject) -> str | None:
    """``eos_token`` of tokenizer_config.json."""
    eos = (subject.json_file("tokenizer_config.json") or {}).get("eos_token")
    eos = eos.get("content") if isinstance(eos, Mapping) else eos
    return eos if isinstance(eos, str) else None


def begins_something(token: str) -> bool:
    """Whether the token begins a turn or a text."""
    return token in _BEGINNINGS


def stop_ids(subject: Subject) -> list[int]:
    """Ids at which a reply ends: the end of a turn in the chat template, then the tokenizer's own eos."""
    ids, words, eos = token_ids(subject), turn_ends(subject), tokenizer_eos(subject)
    if eos is not None and not begins_something(eos):
        words.append(eos)
    return list(dict.fromkeys(ids[word] for word in words if word in ids))
