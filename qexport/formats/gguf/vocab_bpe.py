"""Byte-level BPE vocabularies from ``tokenizer.json``.

Ids that no token has (a vocabulary padded to a round number of rows) become ``[PAD7]``. Added tokens are
either control tokens, which llama.cpp takes apart from text, or user-defined ones, which it looks for in
it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qexport.errors import InputError
from qexport.formats.gguf.vocabulary import TokenType, Vocabulary, looks_special

__all__ = ["bpe_vocabulary", "load_tokenizer", "merges_of", "named_tokens"]

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What transformers' clean_up_tokenization removes when it decodes.
_CLEAN_UP = (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're")


def bpe_vocabulary(
    tokenizer: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any] | None,
    *,
    vocab_size: int | None,
    pre: str,
    label: str,
    notes: list[str],
) -> Vocabulary:
    """Tokens, types and merges; ``vocab_size`` is what ``config.json`` says, the embedding's rows."""
    config = tokenizer_config or {}
    backend = load_tokenizer(tokenizer, config, vocab_size, notes)
    texts = {i: text for text, i in backend.get_vocab(with_added_tokens=True).items()}
    added = backend.get_added_tokens_decoder()
    size = vocab_size if vocab_size is not None else max(texts) + 1
    if max(texts) >= size:
        raise InputError(
            f"{label}: token {texts[max(texts)]!r} has the id {max(texts)}, but vocab_size is {size}",
            hint="The tokenizer has grown past the embedding: resize the embedding, or use its tokenizer.",
        )
    cleans = bool(config.get("clean_up_tokenization_spaces"))
    tokens: list[str] = []
    types: list[TokenType] = []
    for i in range(size):
        text = texts.get(i)
        if text is None:
            tokens.append(f"[PAD{i}]")
            types.append(TokenType.UNUSED)
        elif i not in added:
            tokens.append(text)
            types.append(TokenType.NORMAL)
        else:
            # llama.cpp looks for added tokens in the text as it stands, so they are stored as text.
            if not added[i].normalized:
                text = _round_trip(backend, text, cleans)
            if added[i].special or looks_special(text):
                types.append(TokenType.CONTROL)
            else:
                text = text.replace("▁", " ")
                types.append(TokenType.USER_DEFINED)
            tokens.append(text)
    return Vocabulary("gpt2", pre, tokens, types, merges=merges_of(tokenizer, label))


def load_tokenizer(
    tokenizer: Mapping[str, Any], config: Mapping[str, Any], vocab_size: int | None, notes: list[str]
) -> Any:
    """``tokenizer.json`` with the added tokens of ``tokenizer_config.json``, as transformers does it."""
    from tokenizers import AddedToken, Tokenizer

    try:
        backend = Tokenizer.from_str(json.dumps(tokenizer))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"tokenizer.json cannot be used: {error}", hint="Copy it again from the base model."
        ) from error
    # Padding and truncation are about batches.
    backend.no_padding()
    backend.no_truncation()
    known = {str(token): token for token in backend.get_added_tokens_decoder().values()}
    extra: list[AddedToken] = []
    decoder = config.get("added_tokens_decoder") or {}
    for _, entry in sorted(decoder.items(), key=lambda item: int(item[0])):
        flags = {
            key: bool(entry.get(key, False))
            for key in ("single_word", "lstrip", "rstrip", "normalized", "special")
        }
        token = AddedToken(entry["content"], **flags)
        if repr(known.get(entry["content"])) != repr(token):
            extra.append(token)
            known[entry["content"]] = token
    for text in named_tokens(config):
        if text in known:
            continue
        token = AddedToken(text, special=True)
        if backend.token_to_id(text) is None and vocab_size is not None:
            # A name without a token gets a new id, which needs a row.
            rows = max(backend.get_vocab_size(with_added_tokens=True) + len(extra), 0)
            if rows >= vocab_size:
                notes.append(
                    f"tokenizer_config.json names {text!r}, which has no id and no embedding row: left out"
                )
                continue
        extra.append(token)
        known[text] = token
    if extra:
        backend.add_tokens(extra)
    return backend


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


def merges_of(tokenizer: Mapping[str, Any], label: str) -> list[str]:
    """Merges as "left right". A space inside one is written as its byte-level stand-in.

    https://github.com/ggml-org/llama.cpp/issues/9692
    """
    merges = (tokenizer.get("model") or {}).get("merges") or []
    if not merges:
        return []
    if isinstance(merges[0], str):
        return list(merges)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in merges):
        raise InputError(f"{label}: tokenizer.json has merges that are neither 'a b' nor ['a', 'b']")
    return [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in merges]
