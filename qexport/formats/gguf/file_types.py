"""The GGUF file types, what ``-q`` takes: a name, a number, and the type that most tensors get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qexport.codecs.ggml_types import GGML_TYPES
from qexport.errors import UsageProblem


@dataclass(frozen=True)
class FileType:
    """A name for ``-q``: the number that goes into ``general.file_type`` and the type most tensors get."""

    name: str
    id: int
    default: str

    @property
    def is_quantized(self) -> bool:
        return GGML_TYPES[self.default].is_quantized


# Numbers: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h (enum llama_ftype)
FILE_TYPES: Mapping[str, FileType] = {
    row.name: row
    for row in (
        FileType("F32", 0, "F32"),
        FileType("F16", 1, "F16"),
        FileType("BF16", 32, "BF16"),
        FileType("Q8_0", 7, "Q8_0"),
        FileType("Q4_0", 2, "Q4_0"),
        FileType("Q4_1", 3, "Q4_1"),
        FileType("Q5_0", 8, "Q5_0"),
        FileType("Q5_1", 9, "Q5_1"),
        FileType("Q2_K", 10, "Q2_K"),
        FileType("Q2_K_S", 21, "Q2_K"),
        FileType("Q3_K_S", 11, "Q3_K"),
        FileType("Q3_K_M", 12, "Q3_K"),
        FileType("Q3_K_L", 13, "Q3_K"),
        FileType("Q4_K_S", 14, "Q4_K"),
        FileType("Q4_K_M", 15, "Q4_K"),
        FileType("Q5_K_S", 16, "Q5_K"),
        FileType("Q5_K_M", 17, "Q5_K"),
        FileType("Q6_K", 18, "Q6_K"),
        FileType("IQ4_NL", 25, "IQ4_NL"),
        FileType("IQ4_XS", 30, "IQ4_XS"),
        FileType("IQ3_M", 27, "IQ3_S"),
        FileType("IQ3_S", 26, "IQ3_S"),
        FileType("IQ3_XS", 22, "IQ3_S"),
        FileType("IQ3_XXS", 23, "IQ3_XXS"),
        FileType("IQ2_M", 29, "IQ2_S"),
        FileType("IQ2_S", 28, "IQ2_XS"),
        FileType("IQ2_XS", 20, "IQ2_XS"),
        FileType("IQ2_XXS", 19, "IQ2_XXS"),
        FileType("IQ1_M", 31, "IQ1_M"),
        FileType("IQ1_S", 24, "IQ1_S"),
        FileType("MXFP4_MOE", 38, "MXFP4"),
        FileType("NVFP4", 39, "NVFP4"),
    )
}
PRESETS: Mapping[str, tuple[str, ...]] = {
    "small": ("Q2_K", "Q3_K_M", "IQ4_XS"),
    "standard": ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"),
    "wide": ("Q2_K", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"),
}
"""What a word stands for where several types are asked for."""
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}


def file_type(name: str) -> FileType:
    """The file type called ``name`` (any case, aliases resolved); UsageProblem lists the known names."""
    upper = name.upper()
    found = FILE_TYPES.get(_ALIASES.get(upper, upper))
    if found is None:
        known = ", ".join([*FILE_TYPES, *_ALIASES])
        raise UsageProblem(f"unknown GGUF type {name!r}", hint=f"known types: {known}")
    return found


def file_types(words: Iterable[str]) -> tuple[str, ...]:
    """Types in the order asked for, each once: names, lists with commas between them, and presets."""
    named = [name.strip() for word in words for name in word.split(",")]
    found = [each for name in named for each in PRESETS.get(name.lower(), (name,)) if each]
    return tuple(dict.fromkeys(found))
