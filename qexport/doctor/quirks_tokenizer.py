"""Quirks of tokenizer.json and of the files that repeat what it says: where they differ, tokenizer.json wins.

transformers adds to a tokenizer whatever ``added_tokens_decoder`` lists and tokenizer.json has not, under new
ids beyond the embedding; llama.cpp's converter believes ``added_tokens.json`` and the decoder beside a
``tokenizer.model``. So a file left over from before the vocabulary was changed changes it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qexport.doctor.draft import Draft
from qexport.doctor.quirk import Quirk
from qexport.doctor.subject import EMBEDDING, GENERATION_CONFIG, TOKENIZER_CONFIG, Subject
from qexport.doctor.tokens import token_ids
from qexport.errors import InputError, some
from qexport.families.tokenizer import TokenizerJson, added_flags, library_ids

_FILE, _ADDED, _MAP = "tokenizer.json", "added_tokens.json", "special_tokens_map.json"
_VOCAB, _MERGES = "vocab.json", "merges.txt"
_BATCHES = ("truncation", "padding")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_AGAIN = "Copy tokenizer.json again from the base model, or save the tokenizer again where it was changed."


def _usable(subject: Subject) -> TokenizerJson | None:
    """tokenizer.json, if it is there; one without a usable vocabulary is refused."""
    token_ids(subject)
    return subject.tokenizer


def _clear(subject: Subject) -> TokenizerJson | None:
    """tokenizer.json, if it says all things in one way."""
    tokenizer = _usable(subject)
    return None if tokenizer is None or tokenizer.contradictions else tokenizer


def _said(what: str, clauses: list[str]) -> str | None:
    return f"{what}: {some(clauses, 3, '; ')}" if clauses else None


def _ambiguous(subject: Subject) -> str | None:
    tokenizer = _usable(subject)
    return _said("tokenizer.json is ambiguous", [] if tokenizer is None else [*tokenizer.contradictions])


# --- ids that the library gives otherwise -------------------------------------------------------------------


def _renumbered(subject: Subject, *, unigram: bool) -> str | None:
    tokenizer, model = _clear(subject), subject.json_file(_FILE).get("model")
    listed = isinstance(model, Mapping) and isinstance(model.get("vocab"), list)
    if tokenizer is None or listed != unigram:
        return None
    ids = tokenizer.ids
    clauses = [f"{text!r} {number} instead of {ids[text]}" for text, number in tokenizer.renumbered.items()]
    return _said("readers of tokenizer.json give added tokens other ids than it says", clauses)


# --- what repeats tokenizer.json ----------------------------------------------------------------------------


def _decoder(subject: Subject) -> dict[int, Mapping[str, Any]]:
    found = subject.settings.get("added_tokens_decoder")
    if not isinstance(found, Mapping):
        return {}
    return {
        int(number): entry
        for number, entry in found.items()
        if str(number).isdecimal() and isinstance(entry, Mapping) and isinstance(entry.get("content"), str)
    }


def _contradicting(tokenizer: TokenizerJson, entries: Mapping[int, str]) -> list[str]:
    """What the entries say that tokenizer.json does not, as clauses."""
    if not entries:
        return []
    ids = tokenizer.ids
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


def _stale_decoder(subject: Subject) -> str | None:
    tokenizer, decoder = _clear(subject), _decoder(subject)
    listed = subject.settings.get("added_tokens_decoder")
    if tokenizer is None:
        return None
    if listed is not None and (not isinstance(listed, Mapping) or len(decoder) != len(listed)):
        return "added_tokens_decoder of tokenizer_config.json is not a table of tokens by id"
    clauses = _contradicting(tokenizer, {i: entry["content"] for i, entry in decoder.items()})
    clauses = clauses or _other_flags(tokenizer, decoder)
    return _said("added_tokens_decoder of tokenizer_config.json is stale", clauses)


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
    """Added tokens that readers of tokenizer.model never hear of."""
    tokenizer, listed = _usable(subject), {entry["content"] for entry in _decoder(subject).values()}
    if tokenizer is None or "tokenizer.model" not in subject.checkpoint.files or _stale_decoder(subject):
        return None
    count = sum(row["content"] not in listed for row in tokenizer.added)
    return f"{count} added tokens are in tokenizer.json alone, beside a tokenizer.model" if count else None


def _write_decoder(draft: Draft) -> None:
    """tokenizer.json's added tokens, and those entries that name a token of its vocabulary rightly."""
    if (tokenizer := draft.subject.tokenizer) is not None:
        told = _decoder(draft.subject)
        right = {i: entry for i, entry in told.items() if tokenizer.ids.get(entry["content"]) == i}
        for row in tokenizer.added:
            right[row["id"]] = {key: value for key, value in row.items() if key != "id"}
        rows = {str(i): dict(right[i]) for i in sorted(right)}
        draft.edit_json(TOKENIZER_CONFIG)["added_tokens_decoder"] = rows


def _stale_added(subject: Subject) -> str | None:
    if (tokenizer := _clear(subject)) is None:
        return None
    rows = {number: text for text, number in subject.json_file(_ADDED).items() if isinstance(number, int)}
    return _said("added_tokens.json is stale", _contradicting(tokenizer, rows))


def _write_added(draft: Draft) -> None:
    if (tokenizer := draft.subject.tokenizer) is not None:
        rows, file = [(row["content"], row["id"]) for row in tokenizer.added], draft.edit_json(_ADDED)
        file.clear()
        file.update({text: number for text, number in rows if tokenizer.ids[text] == number})


def _stale_vocabulary(subject: Subject) -> str | None:
    """What the older spelling of a BPE vocabulary, ``vocab.json`` and ``merges.txt``, says otherwise.

    Added tokens may stand in it or not; whatever else tokenizer.json has must.
    """
    if (tokenizer := _clear(subject)) is None:
        return None
    try:
        found = {_VOCAB: _other_ids(subject, tokenizer), _MERGES: _other_merges(subject)}
    except InputError as error:
        return error.message.removeprefix(f"{subject.checkpoint.label}: ").rstrip(".")
    stale = [_said(f"{name} is stale", clauses) for name, clauses in found.items()]
    return ", and ".join(filter(None, stale))


def _other_ids(subject: Subject, tokenizer: TokenizerJson) -> list[str]:
    there, ids = subject.json_file(_VOCAB), tokenizer.ids
    if _VOCAB not in subject.checkpoint.files:
        return []
    added = {row["content"] for row in tokenizer.added}
    return [
        *(
            f"{text!r} is {number!r:.20} there and {ids.get(text, 'no token')} in tokenizer.json"
            for text, number in there.items()
            if ids.get(text) != number
        ),
        *(
            f"{text!r} is missing there"
            for text in tokenizer.vocabulary
            if text not in there and text not in added
        ),
    ]


def _other_merges(subject: Subject) -> list[str]:
    merges = (subject.json_file(_FILE).get("model") or {}).get("merges")
    if _MERGES not in subject.checkpoint.files or not isinstance(merges, list):
        return []
    lines = subject.checkpoint.read_file(_MERGES).decode(errors="replace").replace("\r\n", "\n").split("\n")
    there = [line for n, line in enumerate(lines) if line and (n or not line.startswith("#version"))]
    own = [" ".join(map(str, pair)) if isinstance(pair, list) else str(pair) for pair in merges]
    if there == own:
        return []
    first = next((n for n, pair in enumerate(zip(there, own, strict=False)) if len({*pair}) > 1), None)
    if first is None:
        return [f"it has {len(there)} merges, tokenizer.json {len(own)}"]
    return [f"merge {first + 1} is {there[first]!r:.60} there and {own[first]!r:.60} in tokenizer.json"]


def _drop_vocabulary(draft: Draft) -> None:
    """Both: one is of no use without the other."""
    for name in {_VOCAB, _MERGES} & draft.subject.checkpoint.files.keys():
        draft.remove(name)


def _stale_names(subject: Subject) -> list[str]:
    """Keys under which special_tokens_map.json names another token than tokenizer_config.json, or none."""
    settings, names, ids = subject.settings, subject.json_file(_MAP), token_ids(subject)

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
    more = f", and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"special_tokens_map.json is stale: {keys[0]} is {subject.json_file(_MAP)[keys[0]]!r:.80}{more}"


def _write_map(draft: Draft) -> None:
    """What tokenizer_config.json says as it is repaired; where it is silent, the name goes."""
    names, settings = draft.edit_json(_MAP), draft.edit_json(TOKENIZER_CONFIG)
    for key in _stale_names(draft.subject):
        if settings.get(key) is None:
            del names[key]
        else:
            names[key] = settings[key]


# --- ids in the configs -------------------------------------------------------------------------------------


def _outside(
    subject: Subject, config: Mapping[str, Any], text: Mapping[str, Any], generation: Mapping[str, Any]
) -> Iterator[tuple[str, Any, str, list[int]]]:
    """Ids that no row of the embedding has: the part's name, the part, the key and the ids."""
    embedding = subject.tensors.get(EMBEDDING)
    if embedding is None or not embedding.shape:
        return
    parts = {"config.json": config, GENERATION_CONFIG: generation, "text_config": text}
    for name, part in parts.items():
        if name == "text_config" and text is config:
            continue
        for key in [key for key in part if key.endswith("_token_id")]:
            numbers = part[key] if isinstance(part[key], list) else [part[key]]
            if bad := [n for n in numbers if type(n) is int and not 0 <= n < embedding.shape[0]]:
                yield name, part, key, bad


def _ids_outside(subject: Subject) -> str | None:
    found = _outside(subject, subject.config, subject.text, subject.generation)
    clauses = [f"{key} of {name} is {', '.join(map(str, bad))}" for name, _, key, bad in found]
    if not clauses:
        return None
    rows = subject.tensors[EMBEDDING].shape[0]
    return f"{some(clauses, 3, '; ')}, but the vocabulary has {rows} rows"


def _drop_outside(draft: Draft) -> None:
    generation = draft.edit_json(GENERATION_CONFIG)
    for _, part, key, bad in _outside(draft.subject, draft.config, draft.text, generation):
        left = [n for n in part[key] if n not in bad] if isinstance(part[key], list) else []
        part[key] = (left[0] if len(left) == 1 else left) if left else None


# --- left over from training --------------------------------------------------------------------------------


TOKENIZER_QUIRKS = (
    Quirk(
        "tokenizer.ambiguous",
        "two tokens with one id, or a token with two",
        error=True,
        see=_ambiguous,
        repair=_AGAIN,
        breaks={"all readers": "each takes another of the two; a GGUF differs from run to run"},
    ),
    Quirk(
        "tokenizer.numbered",
        "added tokens whose ids leave a gap after the vocabulary",
        see=lambda subject: _renumbered(subject, unigram=False),
        fix=lambda draft: draft.edit_json(_FILE)["model"].update(vocab=dict(token_ids(draft.subject))),
        repair="Added tokens are entered in the vocabulary too: all readers then take the file's ids.",
        breaks={"transformers, vLLM": "turn markers get the ids, and so the rows, of other tokens"},
    ),
    Quirk(
        "tokenizer.numbered_unigram",
        "added tokens of a Unigram model whose ids leave a gap after the vocabulary",
        error=True,
        see=lambda subject: _renumbered(subject, unigram=True),
        repair=_AGAIN,
        breaks={"transformers, vLLM": "turn markers get the ids, and so the rows, of other tokens"},
    ),
    Quirk(
        "tokenizer.stale_decoder",
        "an added_tokens_decoder that contradicts tokenizer.json",
        see=_stale_decoder,
        fix=_write_decoder,
        repair="added_tokens_decoder is written from tokenizer.json.",
        breaks={
            "transformers, vLLM": "adds its tokens again under ids that the embedding has no rows for",
            "llama.cpp's converter": "AssertionError: max(tokenizer.vocab.values()) < vocab_size",
        },
    ),
    Quirk(
        "tokenizer.added_unlisted",
        "added tokens that tokenizer_config.json does not list",
        see=_unlisted_added,
        fix=_write_decoder,
        repair="added_tokens_decoder is written from tokenizer.json.",
        breaks={
            "llama.cpp's converter": "turn markers become ordinary text: <start_of_turn> is cut into letters"
        },
    ),
    Quirk(
        "tokenizer.stale_added",
        "an added_tokens.json that contradicts tokenizer.json",
        see=_stale_added,
        fix=_write_added,
        repair="added_tokens.json is written from tokenizer.json.",
        breaks={"llama.cpp's converter": "writes its tokens over others"},
    ),
    Quirk(
        "tokenizer.stale_vocab",
        "a vocab.json or merges.txt that contradicts tokenizer.json",
        see=_stale_vocabulary,
        fix=_drop_vocabulary,
        repair="Both are left out: tokenizer.json has the whole vocabulary, and all readers go by it.",
        breaks={"transformers' slow classes, readers of vocab.json": "text becomes tokens never trained"},
    ),
    Quirk(
        "tokenizer.stale_map",
        "a special_tokens_map.json that contradicts tokenizer_config.json or names no token",
        see=_stale_map,
        fix=_write_map,
        repair="special_tokens_map.json says what tokenizer_config.json says.",
        breaks={"transformers 4": "takes one file or the other: another end of text, or a new token"},
    ),
    Quirk(
        "tokenizer.ids_outside",
        "ids of special tokens that the vocabulary does not have",
        see=_ids_outside,
        fix=_drop_outside,
        repair="They are taken out; null says that there is none.",
        breaks={
            "transformers": "IndexError: index out of range in self, on the first batch with padding",
            "vLLM": "OverflowError, or ValueError: token ids out of vocabulary",
        },
    ),
    Quirk(
        "tokenizer.batching",
        "truncation or padding left in tokenizer.json",
        see=lambda s: " and the ".join(key for key in _BATCHES if s.json_file(_FILE).get(key) is not None),
        what="tokenizer.json still has the {found} of a training run",
        fix=lambda draft: draft.edit_json(_FILE).update(dict.fromkeys(_BATCHES)),
        repair="Both are taken out: they are about the batches of a training run.",
        breaks={"readers of tokenizer.json": "prompts are cut at the length of training, without a word"},
    ),
)
