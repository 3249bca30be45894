"""All key-values of a GGUF file but those that quantisation adds.

The order is the converter's: general, hyper-parameters, tokenizer.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from qexport.container.gguf_write import KV, u32
from qexport.errors import InputError
from qexport.families.view import ModelView
from qexport.formats.gguf.arch import arch_of
from qexport.formats.gguf.general import GeneralOptions, ParameterCounts, general_metadata
from qexport.formats.gguf.hparams import hyper_parameters
from qexport.formats.gguf.tokenizer import tokenizer_metadata

# The version of the block formats (GGML_QNT_VERSION); llama.cpp refuses quantised files without it.
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class MetadataOptions:
    """What can be said about a GGUF's metadata.

    Attributes:
        general: authorship and names, instead of what is guessed. pre_tokenizer: llama.cpp's name for the
        pre-tokenizer, instead of the recognised one. scores_from_merges: for a Llama-style
        ``tokenizer.json`` without ``tokenizer.model``: scores that merge in the tokenizer's order, instead
        of the converter's equal ones. overrides: key-values that replace or extend the rest.
    """

    general: GeneralOptions = field(default_factory=GeneralOptions)
    pre_tokenizer: str | None = None
    scores_from_merges: bool = False
    overrides: Mapping[str, KV] = field(default_factory=dict)


def build_metadata(
    view: ModelView,
    *,
    file_type: int,
    counts: ParameterCounts,
    options: MetadataOptions | None = None,
) -> tuple[dict[str, KV], list[str]]:
    """Key-values in file order, and what a user should know about them.

    Args:
        file_type: ``llama_ftype`` of include/llama.h, e.g. 32 for mostly BF16.
        counts: sizes of the tensors that the file will hold (:meth:`ParameterCounts.of`).

    Raises:
        InputError: the tokenizer or config cannot be written as GGUF.
    """
    try:
        return _build(view, file_type, counts, options or MetadataOptions())
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, struct.error) as error:
        # Values come from files that anything may have written; each has dozens of places to be wrong in.
        raise InputError(
            f"{view.label}: config.json or a tokenizer file has a value that cannot be used: {error!r}",
            hint="Compare them with the base model's.",
        ) from error


def _build(
    view: ModelView, file_type: int, counts: ParameterCounts, options: MetadataOptions
) -> tuple[dict[str, KV], list[str]]:
    notes: list[str] = []
    result = general_metadata(view, arch_of(view).name, counts, options.general, notes)
    result.update(hyper_parameters(view, file_type, notes))
    result["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    result.update(
        tokenizer_metadata(
            view,
            notes,
            pre_tokenizer=options.pre_tokenizer,
            scores_from_merges=options.scores_from_merges,
        )
    )
    result.update(options.overrides)
    for value in result.values():
        _ = value.packed  # half a surrogate pair, a number beyond its type: here they are still the input's
    return result, notes
