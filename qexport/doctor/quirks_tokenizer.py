"""Quirks of tokenizer.json and of the files that repeat what it says: where they differ, tokenizer.json wins.

transformers adds to a tokenizer whatever ``added_tokens_decoder`` lists and tokenizer.json has not, under new
ids beyond the embedding; llama.cpp's converter believes ``added_tokens.json`` and the decoder beside a
``tokenizer.model``. So a file left over from before the vocabulary was changed changes it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qexport.doctor.draft import Draft
from qexport.doctor.quirk import Quirk
from qexport.doctor.subject import EMBEDDING, Subject
from qexport.doctor.tokens import token_ids
from qexport.families.tokenizer import TokenizerJson, added_flags, library_ids

_FILE, _SETTINGS, _ADDED, _MAP = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
_GENERATION = "generation_config.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_AGAIN = "Copy tokenizer.json again from the base model, or save the tokenizer again where it was changed."


def _some(clauses: list[str]) -> str:
    more = f" and {len(clauses) - 3} more" if len(clauses) > 3 else ""
    return "; ".join(clauses[:3]) + more


def _ambiguous(subject: Subject) -> str | None:
    token_ids(subject)
    if subject.tokenizer is None or not (found := subject.tokenizer.contradictions):
        return None
    return f"tokenizer.json is ambiguous: {_some(list(found))}"


# --- ids that the library gives otherwise -------------------------------------------------------------------


def _renumbered(subject: Subject) -> str | None:
    token_ids(subject)
    tokenizer = subject.tokenizer
    if tokenizer is None or tokenizer.contradictions or not tokenizer.renumbered:
        return None
    ids = tokenizer.ids
    clauses = [f"{text!r} {number} instead of {ids[text]}" for text, number in tokenizer.renumbered.items()]
    return f"readers of tokenizer.json give added tokens other ids than it says: {_some(clauses)}"


def _unigram(subject: Subject) -> bool:
    model = (subject.json_file(_FILE) or {}).get("model")
    return isinstance(model, Mapping) and isinstance(model.get("vocab"), list)


def _lists_its_ids(subject: Subject) -> str | None:
    return None if _unigram(subject) else _renumbered(subject)


def _cannot_list_ids(subject: Subject) -> str | None:
    return _renumbered(subject) if _unigram(subject) else None


def _enter_added(draft: Draft) -> None:
    """A token that the vocabulary has keeps its id."""
    tokenizer = draft.subject.tokenizer
    if tokenizer is not None:
        draft.edit_json(_FILE)["model"]["vocab"] = dict(tokenizer.ids)


# --- what repeats tokenizer.json ----------------------------------------------------------------------------


def _decoder(subject: Subject) -> dict[int, Mapping[str, Any]]:
    found = (subject.json_file(_SETTINGS) or {}).get("added_tokens_decoder")
    if not isinstance(found, Mapping):
        return {}
    return {
        int(number): entry
        for number, entry in found.items()
        if str(number).isdecimal() and isinstance(entry, Mapping) and isinstance(entry.get("content"), str)
    }


def _contradicting(subject: Subject, entries: Mapping[int, str]) -> list[str]:
    """What the entries say that tokenizer.json does not, as clauses."""
    ids, tokenizer = token_ids(subject), subject.tokenizer
    if tokenizer is None or not entries:
        return []
    texts = {number: text for text, number in ids.items()}
    new = [text for _, text in sorted(entries.items()) if text not in ids]
    numbers = library_ids(tokenizer.vocabulary, [*(row["content"] for row in tokenizer.added), *new])
    return [
        f"{number} is {text!r} there and {texts[number]!r} in tokenizer.json"
        if number in texts
        else f"{text!r} is {number} there and {ids.get(text, 'no token')} in tokenizer.json"
        for number, text in sorted(entries.items())
        if ids.get(text, numbers.get(text)) != number
    ]


def _malformed(subject: Subject) -> bool:
    """Whether the decoder has entries that no reader can use."""
    found = (subject.json_file(_SETTINGS) or {}).get("added_tokens_decoder")
    return found is not None and (not isinstance(found, Mapping) or len(_decoder(subject)) != len(found))


def _unlisted(subject: Subject) -> list[str]:
    """Added tokens that readers of tokenizer.model never hear of."""
    tokenizer, listed = subject.tokenizer, {entry["content"] for entry in _decoder(subject).values()}
    if tokenizer is None or "tokenizer.model" not in subject.checkpoint.files:
        return []
    return [row["content"] for row in tokenizer.added if row["content"] not in listed]


def _stale_decoder(subject: Subject) -> str | None:
    token_ids(subject)
    if subject.tokenizer is None or subject.tokenizer.contradictions:
        return None
    if _malformed(subject):
        return "added_tokens_decoder of tokenizer_config.json is not a table of tokens by id"
    decoder = _decoder(subject)
    clauses = _contradicting(subject, {i: entry["content"] for i, entry in decoder.items()})
    if clauses := clauses or _other_flags(subject.tokenizer, decoder):
        return f"added_tokens_decoder of tokenizer_config.json is stale: {_some(clauses)}"
    return None


def _other_flags(tokenizer: TokenizerJson, decoder: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """transformers goes by the decoder's flags, all other readers by tokenizer.json's."""
    rows = [(row["content"], added_flags(row), decoder.get(row["id"])) for row in tokenizer.added]
    return [
        f"{text!r} has {key} {str(there[key]).lower()} there and {str(own[key]).lower()} in tokenizer.json"
        for text, own, entry in rows
        if entry is not None
        for there in (added_flags(entry),)
        for key in own
        if own[key] != there[key]
    ]


def _unlisted_added(subject: Subject) -> str | None:
    token_ids(subject)
    if not (rows := _unlisted(subject)) or _stale_decoder(subject):
        return None
    return f"{len(rows)} added tokens are in tokenizer.json alone, beside a tokenizer.model"


def _write_decoder(draft: Draft) -> None:
    """tokenizer.json's added tokens, and those entries that name a token of its vocabulary rightly."""
    tokenizer = draft.subject.tokenizer
    if tokenizer is None:
        return
    right = {
        i: entry for i, entry in _decoder(draft.subject).items() if tokenizer.ids.get(entry["content"]) == i
    }
    for row in tokenizer.added:
        right[row["id"]] = {key: value for key, value in row.items() if key != "id"}
    draft.edit_json(_SETTINGS)["added_tokens_decoder"] = {str(i): dict(right[i]) for i in sorted(right)}


def _added_file(subject: Subject) -> dict[int, str]:
    rows = subject.json_file(_ADDED) or {}
    return {number: text for text, number in rows.items() if isinstance(number, int)}


def _stale_added(subject: Subject) -> str | None:
    token_ids(subject)
    if subject.tokenizer is None or subject.tokenizer.contradictions:
        return None
    clauses = _contradicting(subject, _added_file(subject))
    return f"added_tokens.json is stale: {_some(clauses)}" if clauses else None


def _write_added(draft: Draft) -> None:
    ids, file = token_ids(draft.subject), draft.edit_json(_ADDED)
    tokenizer = draft.subject.tokenizer
    if tokenizer is None:
        return
    file.clear()
    file.update({row["content"]: row["id"] for row in tokenizer.added if ids[row["content"]] == row["id"]})


def _stale_names(subject: Subject) -> list[str]:
    """Keys under which special_tokens_map.json names another token than tokenizer_config.json, or none."""
    settings, names = subject.json_file(_SETTINGS) or {}, subject.json_file(_MAP) or {}
    ids = token_ids(subject)

    def text(value: Any) -> Any:
        return value.get("content") if isinstance(value, Mapping) else value

    return [
        key
        for key in _NAMED
        if (said := text(names.get(key))) is not None
        and (text(settings.get(key)) not in (None, said) or (ids and said not in ids))
    ]


def _stale_map(subject: Subject) -> str | None:
    if not (keys := _stale_names(subject)):
        return None
    names = subject.json_file(_MAP) or {}
    return f"special_tokens_map.json is stale: {keys[0]} is {names[keys[0]]!r:.80}" + (
        f", and {len(keys) - 1} more" if len(keys) > 1 else ""
    )


def _write_map(draft: Draft) -> None:
    """What tokenizer_config.json says as it is repaired; where it is silent, the name goes."""
    names, settings = draft.edit_json(_MAP), draft.edit_json(_SETTINGS)
    for key in _stale_names(draft.subject):
        if settings.get(key) is None:
            del names[key]
        else:
            names[key] = settings[key]


# --- ids in the configs -------------------------------------------------------------------------------------


def _outside(part: Mapping[str, Any], rows: int) -> dict[str, list[int]]:
    """Ids that no row of the embedding has, by key."""
    found: dict[str, list[int]] = {}
    for key, value in part.items():
        if key.endswith("_token_id"):
            numbers = value if isinstance(value, list) else [value]
            if bad := [n for n in numbers if type(n) is int and not 0 <= n < rows]:
                found[key] = bad
    return found


def _parts(config: Mapping[str, Any], text: Mapping[str, Any], generation: Mapping[str, Any]) -> Any:
    parts = {"config.json": config, "generation_config.json": generation}
    return parts if text is config else {**parts, "text_config": text}


def _rows(subject: Subject) -> int | None:
    embedding = subject.tensors.get(EMBEDDING)
    return embedding.shape[0] if embedding is not None and embedding.shape else None


def _ids_outside(subject: Subject) -> str | None:
    rows, generation = _rows(subject), subject.json_file(_GENERATION) or {}
    if rows is None:
        return None
    clauses = [
        f"{key} of {name} is {', '.join(map(str, bad))}"
        for name, part in _parts(subject.config, subject.text, generation).items()
        for key, bad in _outside(part, rows).items()
    ]
    return f"{_some(clauses)}, but the vocabulary has {rows} rows" if clauses else None


def _drop_outside(draft: Draft) -> None:
    rows, generation = _rows(draft.subject) or 0, draft.edit_json(_GENERATION)
    for part in _parts(draft.config, draft.text, generation).values():
        for key, bad in _outside(part, rows).items():
            left = [n for n in part[key] if n not in bad] if isinstance(part[key], list) else []
            part[key] = (left[0] if len(left) == 1 else left) if left else None


# --- left over from training --------------------------------------------------------------------------------


def _batching(subject: Subject) -> str | None:
    document = subject.json_file(_FILE) or {}
    found = [key for key in ("truncation", "padding") if document.get(key) is not None]
    return f"tokenizer.json still has the {' and the '.join(found)} of a training run" if found else None


def _no_batching(draft: Draft) -> None:
    draft.edit_json(_FILE).update(truncation=None, padding=None)


TOKENIZER_QUIRKS = (
    Quirk(
        id="tokenizer.ambiguous",
        title="two tokens with one id, or a token with two",
        severity="error",
        see=_ambiguous,
        repair=_AGAIN,
        breaks=(("all readers", "each takes another of the two; a GGUF differs from run to run"),),
    ),
    Quirk(
        id="tokenizer.numbered",
        title="added tokens whose ids leave a gap after the vocabulary",
        severity="repaired",
        see=_lists_its_ids,
        fix=_enter_added,
        repair="Added tokens are entered in the vocabulary too: all readers then take the file's ids.",
        breaks=(("transformers, vLLM", "turn markers get the ids, and so the rows, of other tokens"),),
    ),
    Quirk(
        id="tokenizer.numbered_unigram",
        title="added tokens of a Unigram model whose ids leave a gap after the vocabulary",
        severity="error",
        see=_cannot_list_ids,
        repair=_AGAIN,
        breaks=(("transformers, vLLM", "turn markers get the ids, and so the rows, of other tokens"),),
    ),
    Quirk(
        id="tokenizer.stale_decoder",
        title="an added_tokens_decoder that contradicts tokenizer.json",
        severity="repaired",
        see=_stale_decoder,
        fix=_write_decoder,
        repair="added_tokens_decoder is written from tokenizer.json.",
        breaks=(
            ("transformers, vLLM", "adds its tokens again under ids that the embedding has no rows for"),
            ("llama.cpp's converter", "AssertionError: max(tokenizer.vocab.values()) < vocab_size"),
        ),
    ),
    Quirk(
        id="tokenizer.added_unlisted",
        title="added tokens that tokenizer_config.json does not list",
        severity="repaired",
        see=_unlisted_added,
        fix=_write_decoder,
        repair="added_tokens_decoder is written from tokenizer.json.",
        breaks=(
            (
                "llama.cpp's converter",
                "turn markers become ordinary text: <start_of_turn> is cut into letters",
            ),
        ),
    ),
    Quirk(
        id="tokenizer.stale_added",
        title="an added_tokens.json that contradicts tokenizer.json",
        severity="repaired",
        see=_stale_added,
        fix=_write_added,
        repair="added_tokens.json is written from tokenizer.json.",
        breaks=(("llama.cpp's converter", "writes its tokens over others"),),
    ),
    Quirk(
        id="tokenizer.stale_map",
        title="a special_tokens_map.json that contradicts tokenizer_config.json or names no token",
        severity="repaired",
        see=_stale_map,
        fix=_write_map,
        repair="special_tokens_map.json says what tokenizer_config.json says.",
        breaks=(("transformers 4", "takes one file or the other: another end of text, or a new token"),),
    ),
    Quirk(
        id="tokenizer.ids_outside",
        title="ids of special tokens that the vocabulary does not have",
        severity="repaired",
        see=_ids_outside,
        fix=_drop_outside,
        repair="They are taken out; null says that there is none.",
        breaks=(
            ("transformers", "IndexError: index out of range in self, on the first batch with padding"),
            ("vLLM", "OverflowError, or ValueError: token ids out of vocabulary"),
        ),
    ),
    Quirk(
        id="tokenizer.batching",
        title="truncation or padding left in tokenizer.json",
        severity="repaired",
        see=_batching,
        fix=_no_batching,
        repair="Both are taken out: they are about the batches of a training run.",
        breaks=(("readers of tokenizer.json", "prompts are cut at the length of training, without a word"),),
    ),
)
