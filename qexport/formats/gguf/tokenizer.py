"""``tokenizer.*`` key-values: which kind of vocabulary a family has, and everything that goes with it.

The families differ in what they try first, as in llama.cpp's converter (``set_vocab`` of conversion/llama.py,
qwen.py and gemma.py): a ``tokenizer.model`` where one is used, else ``tokenizer.json`` as SentencePiece or as
byte-level BPE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qexport.checkpoint.chat_templates import read_templates
from qexport.checkpoint.special_tokens import end_ids
from qexport.container.gguf_write import KV, boolean, u32
from qexport.errors import InputError
from qexport.families.roles import Role
from qexport.families.tokenizer import TokenizerJson, tokenizer_json
from qexport.families.view import ModelView
from qexport.formats.gguf.arch import arch_of
from qexport.formats.gguf.chat_template import chat_template_metadata
from qexport.formats.gguf.ends import complete_ends
from qexport.formats.gguf.pretokenizer import check_name, recognise
from qexport.formats.gguf.special_tokens import read_special_tokens
from qexport.formats.gguf.vocab_bpe import bpe_vocabulary
from qexport.formats.gguf.vocab_spm import is_llama_style, llama_style_vocabulary, sentencepiece_vocabulary
from qexport.formats.gguf.vocabulary import Vocabulary, read_json

_CODE_LLAMA_VOCAB = 32016
_CODE_LLAMA_EOT = 32010
# Granite's small models and SmolLM share this size; neither begins a text with its bos token.
_NO_BOS_VOCAB = 49152


@dataclass(frozen=True)
class _Sources:
    """All that a vocabulary is made of."""

    kind: str
    published: str | None
    label: str
    vocab_size: int | None
    tokenizer: bytes | None
    config: bytes | None
    added: bytes | None
    model: bytes | None
    pre_tokenizer: str | None
    scores_from_merges: bool


def tokenizer_metadata(
    view: ModelView, notes: list[str], *, pre_tokenizer: str | None = None, scores_from_merges: bool = False
) -> dict[str, KV]:
    """Every ``tokenizer.*`` key.

    Args:
        notes: what a user should know is appended here.
        pre_tokenizer: llama.cpp's name, instead of the one that tokenizer.json's rules say.
        scores_from_merges: see :mod:`qexport.formats.gguf.vocab_spm`.
    """
    files, label = view.files, view.label
    parsed = _tokenizer(files, label)
    config = read_json(files, "tokenizer_config.json", label)
    vocab_size = view.hyper.vocab
    _check_rows(view, vocab_size)
    result: dict[str, KV] = {}
    arch = arch_of(view)
    llama = arch.vocabulary == "llama"
    prefix = (config or {}).get("add_prefix_space")
    if llama and prefix is not None:
        result["tokenizer.ggml.add_space_prefix"] = boolean(prefix)

    sources = _Sources(
        kind=arch.vocabulary,
        published=arch.pre,
        label=label,
        vocab_size=vocab_size,
        tokenizer=files.get("tokenizer.json"),
        config=files.get("tokenizer_config.json"),
        added=files.get("added_tokens.json"),
        model=files.get("tokenizer.model"),
        pre_tokenizer=pre_tokenizer,
        scores_from_merges=scores_from_merges,
    )
    vocabulary, said = _vocabulary(sources)
    notes += said
    result.update(vocabulary.metadata)
    spm = vocabulary.model == "llama"
    special = read_special_tokens(
        parsed.document if parsed else None,
        config,
        view.config,
        n_vocab=len(vocabulary.tokens),
        notes=notes,
    )
    ids = parsed.ids if parsed is not None else {}
    for word, text in arch.specials.items():
        if text in ids:
            special.ids.setdefault(word, ids[text])
    generation = read_json(files, "generation_config.json", label) or {}
    complete_ends(special, end_ids(generation, view.config, len(vocabulary.tokens)), vocabulary, label)
    result.update(special.metadata())
    result.update(chat_template_metadata(read_templates(files, label)))
    if parsed is not None:
        _normalizer_flags(parsed.document.get("normalizer"), result)
    if arch.vocabulary == "gemma" and spm:
        result["tokenizer.ggml.add_space_prefix"] = boolean(False)
    if llama and vocab_size == _CODE_LLAMA_VOCAB:
        result["tokenizer.ggml.eot_token_id"] = u32(_CODE_LLAMA_EOT)
    if llama and vocab_size == _NO_BOS_VOCAB:
        result["tokenizer.ggml.add_bos_token"] = boolean(False)
    return result


@lru_cache(maxsize=2)  # every type of every plan asks for the same
def _vocabulary(sources: _Sources) -> tuple[Vocabulary, Sequence[str]]:
    """The vocabulary, and what a user should know about it."""
    notes: list[str] = []
    return _make_vocabulary(sources, notes), notes


def _make_vocabulary(sources: _Sources, notes: list[str]) -> Vocabulary:
    label, kind = sources.label, sources.kind
    given = {"tokenizer.json": sources.tokenizer, "tokenizer_config.json": sources.config}
    given["added_tokens.json"] = sources.added
    files = {name: data for name, data in given.items() if data is not None}
    config, vocab_size = read_json(files, "tokenizer_config.json", label), sources.vocab_size
    if sources.model is not None and kind != "bpe":
        added = read_json(files, "added_tokens.json", label)
        return sentencepiece_vocabulary(sources.model, added, config, vocab_size=vocab_size, notes=notes)
    parsed = _tokenizer(files, label)
    if parsed is None:
        raise InputError(
            f"{label}: there is no tokenizer.json",
            hint="Save it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    held = (parsed.document.get("model") or {}).get("type")
    if held != "BPE":
        raise InputError(f"{label}: tokenizer.json holds a {held} model; GGUF export knows BPE ones")
    if kind == "llama" and is_llama_style(parsed) and sources.pre_tokenizer is None:
        return llama_style_vocabulary(
            parsed,
            config,
            vocab_size=vocab_size,
            scores_from_merges=sources.scores_from_merges,
            label=label,
            notes=notes,
        )
    cleans = (config or {}).get("clean_up_tokenization_spaces")
    if sources.pre_tokenizer is not None:
        pre = check_name(sources.pre_tokenizer)
    else:
        pre = recognise(parsed.document, cleans_up_spaces=cleans, label=label, published=sources.published)
        if sources.published == "qwen35" and pre == "qwen2":
            notes.append(
                "tokenizer.json cuts words as Qwen2 does, not as Qwen3.5 (which keeps combining marks with "
                "their letters): a tool may have re-saved it; --pre-tokenizer qwen35 restores the original"
            )
    return bpe_vocabulary(parsed, config, vocab_size=vocab_size, pre=pre, label=label, notes=notes)


def _tokenizer(files: Mapping[str, bytes], label: str) -> TokenizerJson | None:
    data = files.get("tokenizer.json")
    return None if data is None else tokenizer_json(data, f"{label}: tokenizer.json")


def _check_rows(view: ModelView, vocab_size: int | None) -> None:
    embedding = view.find(Role.TOKEN_EMBD)
    if embedding is not None and vocab_size is not None and embedding.shape[0] != vocab_size:
        raise InputError(
            f"{view.label}: {embedding.name} has {embedding.shape[0]} rows, but vocab_size is {vocab_size}",
            hint="llama.cpp loads only files where both agree: correct vocab_size in config.json.",
        )


def token_embedding_rows(view: ModelView) -> int | None:
    """How many rows of the embedding belong to tokens, where the converter cuts the rest off (Gemma 3
    without a
    ``tokenizer.model``); ``None`` where all rows stay."""
    if arch_of(view).vocabulary != "gemma" or "tokenizer.model" in view.files:
        return None
    tokenizer = _tokenizer(view.files, view.label)
    return 0 if tokenizer is None else len(tokenizer.vocabulary) + len(tokenizer.added)


def _normalizer_flags(normalizer: dict[str, Any] | None, result: dict[str, KV]) -> None:
    """What llama.cpp can do to a text before it cuts it: lower case, and no accents."""
    if not normalizer:
        return
    kind = normalizer.get("type")
    if kind == "Sequence":
        for step in normalizer.get("normalizers") or []:
            _normalizer_flags(step, result)
    elif kind == "Lowercase":
        result["tokenizer.ggml.normalizer.lowercase"] = boolean(True)
    elif kind == "StripAccents":
        result["tokenizer.ggml.normalizer.strip_accents"] = boolean(True)
    elif kind == "BertNormalizer":
        for key in ("lowercase", "strip_accents"):
            if normalizer.get(key) is not None:
                result[f"tokenizer.ggml.normalizer.{key}"] = boolean(normalizer[key])
