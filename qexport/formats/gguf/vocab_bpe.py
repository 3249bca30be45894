"""Byte-level BPE vocabularies from ``tokenizer.json``.

Ids that no token has (a vocabulary padded to a round number of rows) become ``[PAD7]``. Added tokens are
either control tokens, which llama.cpp takes apart from text, or user-defined ones, which it looks for in
it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from qexport.errors import InputError
from qexport.families.tokenizer import TokenizerJson, library_ids
from qexport.formats.gguf.vocabulary import TokenType, Vocabulary, looks_special

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# What transformers' clean_up_tokenization removes when it decodes.
_CLEAN_UP = (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're")


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text as it stands, before the rest is cut; flags as in tokenizer.json."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> AddedToken:
        """From a row of ``added_tokens`` or an entry of ``added_tokens_decoder``."""
        return cls(row["content"], **{flag: bool(row.get(flag, False)) for flag in _FLAGS})


def bpe_vocabulary(
    tokenizer: TokenizerJson,
    tokenizer_config: Mapping[str, Any] | None,
    *,
    vocab_size: int | None,
    pre: str,
    label: str,
    notes: list[str],
) -> Vocabulary:
    """Tokens, types and merges; ``vocab_size`` is what ``config.json`` says, the embedding's rows."""
    config = tokenizer_config or {}
    added = added_tokens(tokenizer, config, vocab_size, notes)
    texts = texts_by_id(tokenizer, added, label)
    size = vocab_size if vocab_size is not None else max(texts) + 1
    if max(texts) >= size:
        raise InputError(
            f"{label}: token {texts[max(texts)]!r} has the id {max(texts)}, but vocab_size is {size}",
            hint="The tokenizer has grown past the embedding: resize the embedding, or use its tokenizer.",
        )
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(size)]
    types = [TokenType.NORMAL if i in texts else TokenType.UNUSED for i in range(size)]
    backend = _round_tripper(tokenizer, added)
    cleans = bool(config.get("clean_up_tokenization_spaces"))
    for i, token in added.items():
        # llama.cpp looks for added tokens in the text as it stands, so they are stored as text.
        text = token.content if token.normalized else _round_trip(backend, token.content, cleans)
        control = token.special or looks_special(text)
        types[i] = TokenType.CONTROL if control else TokenType.USER_DEFINED
        tokens[i] = text if control else text.replace("▁", " ")
    return Vocabulary("gpt2", pre, tokens, types, merges=merges_of(tokenizer, label))


def added_tokens(
    tokenizer: TokenizerJson, config: Mapping[str, Any], vocab_size: int | None, notes: list[str]
) -> dict[int, AddedToken]:
    """Added tokens of both ``tokenizer.json`` and ``tokenizer_config.json`` by id, as in transformers."""
    known = {row["content"]: AddedToken.of(row) for row in tokenizer.added}
    vocabulary, decoder = tokenizer.vocabulary, config.get("added_tokens_decoder") or {}
    for _, entry in sorted(decoder.items(), key=lambda item: int(item[0])):
        known[entry["content"]] = AddedToken.of(entry)
    for text in named_tokens(config):
        if text in known:
            continue
        # A name without a token gets a new id, which needs a row.
        if text not in vocabulary and vocab_size is not None and vocab_size <= len({*vocabulary, *known}):
            notes.append(
                f"tokenizer_config.json names {text!r}, which has no id and no embedding row: left out"
            )
            continue
        known[text] = AddedToken(text)
    ids = library_ids(vocabulary, list(known))
    return {ids[text]: token for text, token in known.items()}


def texts_by_id(tokenizer: TokenizerJson, added: Mapping[int, AddedToken], label: str) -> dict[int, str]:
    """Every token's text by id.

    Raises:
        InputError: two tokens have one id.
    """
    vocabulary = tokenizer.vocabulary
    texts = {i: text for text, i in vocabulary.items()}
    pairs = vocabulary.items() if len(texts) < len(vocabulary) else ()  # two of one id are among them
    for text, i in chain(pairs, ((t.content, i) for i, t in added.items())):
        if texts.setdefault(i, text) != text:
            raise InputError(
                f"{label}: tokenizer.json has two tokens with the id {i}, {texts[i]!r} and {text!r}",
                hint="Copy tokenizer.json and tokenizer_config.json again from the base model.",
            )
    if not texts:
        raise InputError(f"{label}: tokenizer.json has no tokens", hint="Copy it again from the base model.")
    return texts


def _round_tripper(tokenizer: TokenizerJson, added: Mapping[int, AddedToken]) -> Any:
    """The tokenizer with as much of its vocabulary as an added token's own text can need.

    Without merges a text falls into single characters, which a decoder joins as it would join longer tokens;
    so the texts are those of the whole vocabulary, which would take a second to load.
    """
    from tokenizers import Tokenizer

    model = tokenizer.document["model"]
    longest = 1 + sum(
        len(model.get(key) or "") for key in ("continuing_subword_prefix", "end_of_word_suffix")
    )
    kept = {model.get("unk_token")} | {token.content for token in added.values()}
    vocab = [t for t in tokenizer.vocabulary if len(t) <= longest or t in kept or t.startswith("<0x")]
    reduced = {**model, "vocab": {text: i for i, text in enumerate(vocab)}, "merges": []}
    rows = [{"id": i, **asdict(token)} for i, token in added.items()]
    document = {**tokenizer.document, "model": reduced, "added_tokens": rows}
    # About batches and whole prompts, not about one token's text.
    document |= {"truncation": None, "padding": None, "post_processor": None}
    try:
        return Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"tokenizer.json cannot be used: {error}", hint="Copy it again from the base model."
        ) from error


def named_tokens(config: Mapping[str, Any]) -> list[str]:
    entries = [config.get(key) for key in _NAMED]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(key) or []
        entries += list(more.values()) if isinstance(more, Mapping) else list(more)
    texts = [entry.get("content") if isinstance(entry, Mapping) else entry for entry in entries]
    return [text for text in texts if isinstance(text, str) and text]


def _round_trip(backend: Any, text: str, cleans: bool) -> str:
    decoded: str = backend.decode(
        backend.encode(text, add_special_tokens=False).ids, skip_special_tokens=False
    )
    if cleans:
        for piece in _CLEAN_UP:
            decoded = decoded.replace(piece, piece[1:])
    return decoded


def merges_of(tokenizer: TokenizerJson, label: str) -> list[str]:
    """Merges as "left right". A space inside one is written as its byte-level stand-in.

    https://github.com/ggml-org/llama.cpp/issues/9692

    Raises:
        InputError: a merge is neither ``"a b"`` nor ``["a", "b"]``, or one of its tokens is not there.
    """
    model, vocab = tokenizer.document.get("model") or {}, tokenizer.vocabulary
    prefix = len(model.get("continuing_subword_prefix") or "")
    merges = model.get("merges") or []
    # There are a quarter of a million: one step for all at a time; which one is wrong is asked if one is.
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if not all(map(_is_pair, pairs)):
        wrong = next(merge for merge, pair in zip(merges, pairs, strict=True) if not _is_pair(pair))
        raise _bad_merge(label, f"a merge that is neither 'a b' nor ['a', 'b']: {wrong!r:.80}")
    whole = [left + right[prefix:] for left, right in pairs]
    if not vocab.keys() >= {*chain.from_iterable(pairs), *whole}:
        known = vocab.keys()
        parts = zip(pairs, whole, strict=True)
        left, right = next(pair for pair, text in parts if not known >= {*pair, text})
        raise _bad_merge(label, f"a merge of {left!r} and {right!r}, which do not make a token")
    return [
        f"{left} {right}" if " " not in text else f"{_byte_level(left)} {_byte_level(right)}"
        for (left, right), text in zip(pairs, whole, strict=True)
    ]


def _is_pair(pair: Any) -> bool:
    return type(pair) is list and len(pair) == 2 and type(pair[0]) is type(pair[1]) is str


def _byte_level(text: str) -> str:
    return text.replace(" ", "Ġ")


def _bad_merge(label: str, what: str) -> InputError:
    return InputError(f"{label}: tokenizer.json has {what}", hint="Copy it again from the base model.")
