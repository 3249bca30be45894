"""Quirks of where a text ends: an end of text that no file names, and one that stands behind every prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qexport.checkpoint.special_tokens import token_text
from qexport.doctor.draft import Draft
from qexport.doctor.quirk import Quirk
from qexport.doctor.subject import TOKENIZER_CONFIG, Subject
from qexport.doctor.tokens import stop_ids, tokenizer_eos, tokenizer_kind

_JSON = "tokenizer.json"
# A model of embeddings reads the vector of that very token.
_EMBEDDINGS = ("config_sentence_transformers.json", "modules.json")


def _eos_unnamed(subject: Subject) -> str | None:
    if tokenizer_kind(subject) == "none":
        return None
    eos, named = tokenizer_eos(subject), token_text(subject.settings.get("eos_token"))
    if eos is None or eos == named:
        return None
    what = (
        "names no eos_token" if named is None else f"has the eos_token {named}, which readers do not end with"
    )
    return f"{TOKENIZER_CONFIG} {what}; by the other files it is {eos}"


def _no_eos(subject: Subject) -> bool:
    some_end = tokenizer_eos(subject) is not None or bool(stop_ids(subject))
    return not some_end and tokenizer_kind(subject) != "none"


def _processors(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The post-processors of tokenizer.json, one after the other."""
    whole = document.get("post_processor")
    steps = whole.get("processors") if isinstance(whole, dict) and "processors" in whole else [whole]
    return [step for step in steps or [] if isinstance(step, dict)]


def _special(piece: Any) -> str | None:
    inner = piece.get("SpecialToken") if isinstance(piece, Mapping) else None
    return str(inner.get("id")) if isinstance(inner, Mapping) else None


def _behind(step: Mapping[str, Any]) -> list[str]:
    """The special tokens that a post-processor puts behind a text."""
    if step.get("type") in ("RobertaProcessing", "BertProcessing"):
        return [str((step.get("sep") or [""])[0])]
    names: list[str] = []
    for piece in reversed(step.get("single") or []):
        if (name := _special(piece)) is None:
            break
        names.insert(0, name)
    return names


def _adds_eos(subject: Subject) -> str | None:
    if any(name in subject.checkpoint.files for name in _EMBEDDINGS):
        return None
    flag = f"{TOKENIZER_CONFIG} says add_eos_token" if subject.settings.get("add_eos_token") is True else ""
    names = [name for step in _processors(subject.json_file(_JSON)) for name in _behind(step)]
    added = f"{_JSON} puts {' '.join(names)} behind every text" if names else ""
    return ", and ".join(filter(None, (flag, added))) or None


def _add_no_eos(draft: Draft) -> None:
    if draft.subject.settings.get("add_eos_token") is True:
        draft.edit_json(TOKENIZER_CONFIG)["add_eos_token"] = False
    for at, step in enumerate(_processors(draft.subject.json_file(_JSON))):
        if names := set(_behind(step)):
            mine = _processors(draft.edit_json(_JSON))[at]
            if "single" not in mine:
                _as_template(mine)
            for key in ("single", "pair"):
                mine[key] = _without(mine.get(key) or [], names)
            used = {_special(piece) for key in ("single", "pair") for piece in mine[key]}
            known = mine.get("special_tokens") or {}
            mine["special_tokens"] = {name: value for name, value in known.items() if name in used}


def _as_template(step: dict[str, Any]) -> None:
    """RoBERTa's and BERT's processors in the words of the general one, less what they put behind."""
    name, number = step.get("cls") or ("", 0)
    begin = {"SpecialToken": {"id": name, "type_id": 0}}
    a, b = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
    step.clear()
    step |= {"type": "TemplateProcessing", "single": [begin, a], "pair": [begin, a, b]}
    step["special_tokens"] = {name: {"id": name, "ids": [number], "tokens": [name]}}


def _without(pieces: list[Any], names: set[str]) -> list[Any]:
    """A template without these special tokens, wherever they follow a text."""
    first = next((at for at, piece in enumerate(pieces) if _special(piece) is None), len(pieces))
    return pieces[:first] + [piece for piece in pieces[first:] if _special(piece) not in names]


END_QUIRKS = (
    Quirk(
        "eos.unnamed",
        "an end of text that tokenizer_config.json does not name",
        see=_eos_unnamed,
        fix=lambda draft: draft.edit_json(TOKENIZER_CONFIG).update(eos_token=tokenizer_eos(draft.subject)),
        repair=(
            "It is named there: from special_tokens_map.json, generation_config.json, config.json, or the "
            "tokenizer's class, in this order."
        ),
        breaks={
            "llama.cpp": "takes token 11 of a BPE vocabulary, a comma in most, and ends every reply there"
        },
        reference="https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp",
    ),
    Quirk(
        "eos.none",
        "no end of text anywhere",
        see=_no_eos,
        what="no file says which token ends a text",
        repair=(
            "Set eos_token in tokenizer_config.json and eos_token_id in generation_config.json; GGUF is "
            "refused without."
        ),
        breaks={"all servers": "a reply never ends, or at a wrong token"},
    ),
    Quirk(
        "tokenizer.adds_eos",
        "an end of text behind every prompt",
        see=_adds_eos,
        fix=_add_no_eos,
        repair="A leftover of training: add_eos_token becomes false, the post-processor puts nothing behind.",
        breaks={
            "all readers": "the prompt is over before the model has answered: empty or unrelated replies"
        },
    ),
)
