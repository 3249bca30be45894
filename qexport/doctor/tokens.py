"""What the tokenizer files say: token ids, where a turn ends."""

from __future__ import annotations

from collections.abc import Mapping

from qexport.checkpoint.special_tokens import end_ids, special_names
from qexport.doctor.subject import Subject
from qexport.errors import InputError

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
    model = subject.json_file("tokenizer.json").get("model")
    own = (model.get("type") if isinstance(model, Mapping) else None) or "unknown"
    for name, kind in (("tokenizer.json", own), ("tokenizer.model", "SentencePiece"), ("vocab.json", "BPE")):
        if name in subject.checkpoint.files:
            return f"{kind} ({name})"
    return "none"


def turn_ends(subject: Subject) -> list[str]:
    """The tokens that end a turn in the chat template."""
    template = subject.templates.default or ""
    return [token for token in _TURN_ENDS if token in template]


def tokenizer_eos(subject: Subject) -> str | None:
    """The tokenizer's end of text: by name, as transformers finds it; else the first that a config stops at;
    else what the tokenizer's class takes. A name that is no token counts as none."""
    settings, mapped = subject.settings, subject.json_file("special_tokens_map.json")
    ids = token_ids(subject)
    if (named := _known(special_names(settings, mapped, by_class=False), ids)) is not None:
        return named
    texts = {number: text for text, number in ids.items()}
    ends = end_ids(subject.generation, subject.config)
    if (text := next((texts[number] for number in ends if number in texts), None)) is not None:
        return text
    return _known(special_names(settings, mapped), ids) if "eos_token" not in settings else None


def _known(names: Mapping[str, str], ids: Mapping[str, int]) -> str | None:
    eos = names.get("eos_token")
    return eos if eos in ids or not ids else None


def begins_something(token: str) -> bool:
    """Whether the token begins a turn or a text."""
    return token in _BEGINNINGS


def stop_ids(subject: Subject) -> list[int]:
    """Ids at which a reply ends: the end of a turn in the chat template, then the tokenizer's own eos."""
    ids, words, eos = token_ids(subject), turn_ends(subject), tokenizer_eos(subject)
    if eos is not None and not begins_something(eos):
        words.append(eos)
    return list(dict.fromkeys(ids[word] for word in words if word in ids))
