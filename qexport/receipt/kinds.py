"""What each format is called, who reads it and how the Hub knows it: for cards and reports alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FormatWords:
    """Words for a format.

    Attributes:
        readers: what it is, in a card's first sentence.
        library: for the Hub, which shows its snippet to use a model with.
        tags: of a repository that holds it.
        sees: whether it is written with the source's vision tower.
        prefix: of its types in charts, where they do not say the format.
    """

    name: str
    readers: str
    library: str
    tags: tuple[str, ...] = ()
    sees: bool = False
    prefix: str = ""


FORMAT_WORDS: Mapping[str, FormatWords] = {
    "gguf": FormatWords(
        "GGUF", "GGUF, for llama.cpp and the programs built on it", "gguf", ("gguf", "llama.cpp")
    ),
    "mlx": FormatWords("MLX", "MLX, for Apple silicon", "mlx", ("mlx",), prefix="MLX"),
    "fp8": FormatWords(
        "FP8",
        "FP8, for vLLM, SGLang and transformers",
        "transformers",
        ("fp8", "vllm", "sglang"),
        sees=True,
    ),
    "nvfp4": FormatWords(
        "NVFP4", "NVFP4, for vLLM and SGLang", "vllm", ("nvfp4", "vllm", "sglang"), sees=True
    ),
    "merged": FormatWords(
        "merged",
        "the weights unquantized, with their configuration repaired",
        "transformers",
        sees=True,
        prefix="merged",
    ),
}
"""In the order in which cards and reports list them."""


def words_of(name: str) -> FormatWords:
    """Of a format; one that is not known goes by its own name."""
    return FORMAT_WORDS.get(name, FormatWords(name, name, "", sees=True))


def place(name: str) -> int:
    """Of a format among the others; one that is not known comes last."""
    return list(FORMAT_WORDS).index(name) if name in FORMAT_WORDS else len(FORMAT_WORDS)
