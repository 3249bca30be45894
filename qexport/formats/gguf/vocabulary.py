"""A vocabulary as GGUF stores it: texts in id order, each with its kind and, for SentencePiece, its score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

from qexport.checkpoint.config import parse_json
from qexport.container.gguf_write import KV, ValueType, array, string


class TokenType(IntEnum):
    """``llama_token_type`` of include/llama.h."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and how to cut and join them.

    Attributes:
        model: ``gpt2`` (byte-level BPE) or ``llama`` (SentencePiece).
        pre: name of the pre-tokenizer.
        tokens, types: by id.
        scores: by id, for ``llama``.
        merges: "left right" by rank, for ``gpt2``.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] | None = None
    merges: list[str] | None = None

    @cached_property
    def metadata(self) -> Mapping[str, KV]:
        """The key-values; made once, since their arrays are most of a file's header."""
        result = {
            "tokenizer.ggml.model": string(self.model),
            "tokenizer.ggml.pre": string(self.pre),
            "tokenizer.ggml.tokens": array(ValueType.STRING, self.tokens),
        }
        if self.scores is not None:
            result["tokenizer.ggml.scores"] = array(ValueType.F32, self.scores)
        result["tokenizer.ggml.token_type"] = array(ValueType.I32, [int(t) for t in self.types])
        if self.merges:
            result["tokenizer.ggml.merges"] = array(ValueType.STRING, self.merges)
        return result


def looks_special(text: str) -> bool:
    """Tokens that are control tokens in all but their flag: ``<|...|>``, ``<unused7>``, ``<pad>``.

    The converter's rule; without it Gemma's and DeepSeek's would be printed as text.
    """
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def read_json(files: Mapping[str, bytes], name: str, label: str) -> dict[str, Any] | None:
    """A parsed small file, or ``None`` if there is none."""
    return parse_json(files[name], f"{label}: {name}") if name in files else None
