"""All formats: a new one is a package and a line here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qexport.formats.format import Format, Words
from qexport.formats.fp8.format import FP8
from qexport.formats.gguf.format import GGUF
from qexport.formats.merged.format import MERGED
from qexport.formats.mlx.format import MLX
from qexport.formats.nvfp4.format import NVFP4
from qexport.formats.tolerance import LEAST, Tolerance

if TYPE_CHECKING:
    from qexport.artifacts.layout import ArtifactLayout


FORMATS: Mapping[str, Format] = {each.word: each for each in (GGUF, MLX, FP8, NVFP4, MERGED)}
"""By word, in the order in which cards and reports show them."""


def format_of(options: Any) -> Format:
    """The format that these options are of."""
    return next(each for each in FORMATS.values() if isinstance(options, each.options))


def words_of(word: str) -> Words:
    """Of a format; one that is not known, of a receipt that another version wrote, goes by its own name."""
    return FORMATS[word].words if word in FORMATS else Words(word, word, sees=True)


def place_of(word: str) -> int:
    """Of a format among the others; one that is not known comes last."""
    return list(FORMATS).index(word) if word in FORMATS else len(FORMATS)


def tolerance(stored_type: str) -> Tolerance:
    """The limits for what weights are stored as, such as ``Q4_K_M``; a name means the same in every format.

    >>> tolerance("Q8_0").near_tie
    0.1
    >>> tolerance("IQ4_XS") == tolerance("Q4_K_M")
    True
    """
    known = (pair for each in FORMATS.values() for pair in each.tolerances.items())
    return next((limits for pattern, limits in known if re.fullmatch(pattern, stored_type)), LEAST)


def layouts() -> tuple[ArtifactLayout, ...]:
    """Every layout that is read, each once: those of formats, and what others alone write; plain folders
    last, which say nothing of themselves."""
    from qexport.formats.awq import AWQ
    from qexport.formats.gptq import GPTQ

    found = {each.word: each for one in FORMATS.values() for each in one.layouts()}
    return tuple(sorted((*found.values(), AWQ, GPTQ), key=lambda each: each.plain))
