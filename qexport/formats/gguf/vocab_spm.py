"""SentencePiece vocabularies: from ``tokenizer.model``, or from a ``tokenizer.json`` made of one.

llama.cpp merges SentencePiece pieces by score, highest first (``llm_tokenizer_spm`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp). ``tokenizer.model`` has the scores. A
``tokenizer.json`` has only merges: the converter gives every token the same score, -1000, and so does the
default here; :func:`merge_scores` has the ones that merge in the order of the merges.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qexport.errors import EnvironmentProblem, InputError
from qexport.families.tokenizer import TokenizerJson
from qexport.formats.gguf.vocab_bpe import added_tokens, merges_of, named_tokens, texts_by_id
from qexport.formats.gguf.vocabulary import TokenType, Vocabulary, looks_special
from qexport.optional import command_for

_ADDED_SCORE = -1000.0
_HOLE_SCORE = -10000.0


def sentencepiece_vocabulary(
    model: bytes,
    added_tokens: Mapping[str, int] | None,
    tokenizer_config: Mapping[str, Any] | None,
    *,
    vocab_size: int | None,
    notes: list[str],
) -> Vocabulary:
    """Pieces and scores of ``tokenizer.model``, ``added_tokens.json`` and ``tokenizer_config.json``."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise EnvironmentProblem(
            "tokenizer.model needs the sentencepiece package", hint=command_for("sentencepiece")
        ) from None
    try:
        pieces = SentencePieceProcessor(model_proto=model)
        _ = [pieces.IdToPiece(i) for i in range(pieces.vocab_size())]
    except (RuntimeError, UnicodeDecodeError, IndexError) as error:
        raise InputError(
            f"tokenizer.model cannot be used: {error}", hint="Copy it again from the base model."
        ) from error
    size = vocab_size or pieces.vocab_size()
    tokens = [f"[PAD{i}]" for i in range(size)]
    scores = [_HOLE_SCORE] * size
    types = [TokenType.UNUSED] * size
    if pieces.vocab_size() > size:
        notes.append(
            f"tokenizer.model has {pieces.vocab_size()} pieces, vocab_size is {size}: the rest is left out"
        )
    for i in range(min(size, pieces.vocab_size())):
        tokens[i] = pieces.IdToPiece(i)
        scores[i] = pieces.GetScore(i)
        types[i] = _piece_type(pieces, i)

    def add(i: int, text: str, kind: TokenType) -> None:
        if i >= size:
            notes.append(f"token {text!r} has the id {i}, vocab_size is {size}: left out")
            return
        tokens[i], scores[i], types[i] = text, _ADDED_SCORE, kind

    for text, i in (added_tokens or {}).items():
        add(i, text, TokenType.USER_DEFINED)
    for key, entry in ((tokenizer_config or {}).get("added_tokens_decoder") or {}).items():
        text = entry["content"]
        if entry.get("special") or looks_special(text):
            add(int(key), text, TokenType.CONTROL)
        else:
            add(int(key), text.replace("▁", " "), TokenType.USER_DEFINED)
    return Vocabulary("llama", "default", tokens, types, scores=scores)


def _piece_type(pieces: Any, i: int) -> TokenType:
    if pieces.IsUnknown(i):
        return TokenType.UNKNOWN
    if pieces.IsControl(i):
        return TokenType.CONTROL
    if pieces.IsUnused(i):
        return TokenType.UNUSED
    if pieces.IsByte(i):
        return TokenType.BYTE
    return TokenType.NORMAL


def is_llama_style(tokenizer: TokenizerJson) -> bool:
    """Whether ``tokenizer.json`` is SentencePiece in disguise: byte fallback and a chain of decoders.

    A byte-level vocabulary that claims byte fallback has been repaired by the doctor before it comes here.
    """
    model = tokenizer.document.get("model") or {}
    decoder = tokenizer.document.get("decoder") or {}
    return (
        model.get("type") == "BPE" and bool(model.get("byte_fallback")) and decoder.get("type") == "Sequence"
    )


def llama_style_vocabulary(
    tokenizer: TokenizerJson,
    tokenizer_config: Mapping[str, Any] | None,
    *,
    vocab_size: int | None,
    scores_from_merges: bool,
    label: str,
    notes: list[str],
) -> Vocabulary:
    """Tokens of a Llama-style ``tokenizer.json`` that comes without its ``tokenizer.model``."""
    config = dict(tokenizer_config or {})
    if str(config.get("tokenizer_class", "LlamaTokenizer")).removesuffix("Fast") == "LlamaTokenizer":
        for key, text in (("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")):
            if not config.get(key):
                config[key] = text
    known = added_tokens(tokenizer, config, vocab_size, notes)
    base = len(tokenizer.vocabulary)
    texts = texts_by_id(tokenizer, known, label)
    numbers = {text: i for i, text in texts.items()}
    special = {numbers[text] for text in named_tokens(config) if text in numbers}
    added = sorted(i for i in known if i >= base)
    if set(range(base)) - set(texts) or added != list(range(base, base + len(added))):
        raise InputError(
            f"{label}: the ids of tokenizer.json have gaps, which a SentencePiece model cannot have"
        )
    tokens: list[str] = []
    types: list[TokenType] = []
    for i in range(base + len(added)):
        text = texts[i]
        if i < base and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text):
            kind = TokenType.BYTE
        elif i in special:
            kind = TokenType.CONTROL
        else:
            kind = TokenType.NORMAL if i < base else TokenType.USER_DEFINED
        tokens.append(text)
        types.append(kind)
    if vocab_size is not None and len(tokens) > vocab_size:
        raise InputError(
            f"{label}: tokenizer.json has {len(tokens)} tokens, but vocab_size is {vocab_size}",
            hint="The tokenizer has grown past the embedding: resize the embedding, or use its tokenizer.",
        )
    if vocab_size is not None and len(tokens) < vocab_size:
        # The converter stops here, and llama.cpp refuses its file: the embedding has more rows than tokens.
        notes.append(f"{vocab_size - len(tokens)} embedding rows have no token: padded with [PAD...] tokens")
        types += [TokenType.UNUSED] * (vocab_size - len(tokens))
        tokens += [f"[PAD{i}]" for i in range(len(tokens), vocab_size)]
    if scores_from_merges:
        scores = merge_scores(tokenizer, tokens, label)
    else:
        scores = [_ADDED_SCORE] * len(tokens)
        notes.append(
            "there is no tokenizer.model: every token gets the score -1000, as from llama.cpp's converter, "
            "and llama.cpp may merge in another order than the model was trained with"
        )
    return Vocabulary("llama", "default", tokens, types, scores=scores)


def merge_scores(tokenizer: TokenizerJson, tokens: list[str], label: str) -> list[float]:
    """A score per token that makes llama.cpp merge in the order of the merges: minus the rank of the first
    merge that makes the token, as SentencePiece's own BPE models have it."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges_of(tokenizer, label)):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks[text]) if text in ranks else _ADDED_SCORE for text in tokens]
