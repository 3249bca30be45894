"""The kinds of artifacts that a recipe may name: one row each.

A row says which option class holds the choices, which of its fields a recipe does not set, what it does with
importance, and about how large it will be. Keys of a recipe are the fields of that class (``fields.py``), so
a new option of a format needs no line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qexport.formats.fp8.options import Fp8Options
from qexport.formats.gguf.file_types import file_type
from qexport.formats.gguf.mixture_terms import Overrides
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import NVIDIA, Nvfp4Options
from qexport.pipeline.folders import default_folder
from qexport.recipe.merged import MergedOptions


@dataclass(frozen=True)
class Kind:
    """What is to be known about a kind.

    Attributes:
        options: the dataclass whose fields are the keys.
        folder: the folder's name for some options, with ``{name}`` for the model's.
        bits: bits per weight for a size that is guessed, by type of a ladder (``""`` for a folder).
        ladder: it has ``types``, each a file of its own in one folder.
        matrix: the field that takes an importance matrix.
        weighted: whether importance is used where the recipe does not say, from the fields that were given.
        sizes: fields that are bytes.
        check: raises what the option class does not check itself.
    """

    options: type
    folder: Callable[[Any], str]
    bits: Callable[[str, Any], float]
    ladder: bool = False
    matrix: str | None = None
    weighted: Callable[[Mapping[str, Any]], bool] = lambda _: False
    sizes: tuple[str, ...] = ()
    check: Callable[[Any], object] = lambda _: None

    @property
    def hidden(self) -> tuple[str, ...]:
        """Fields that a recipe does not set."""
        return () if self.matrix is None else (self.matrix,)


# Of 27B files that publishers ship, a little up: what is guessed must fit.
_GGUF_BITS = {
    "F32": 32.0, "BF16": 16.05, "F16": 16.05, "Q8_0": 8.6, "Q6_K": 6.9,
    "Q5_K_M": 6.0, "Q5_K_S": 5.8, "Q5_1": 6.2, "Q5_0": 5.8,
    "Q4_1": 5.3, "Q4_0": 4.9, "Q4_K_M": 5.2, "Q4_K_S": 4.95, "IQ4_NL": 4.8, "IQ4_XS": 4.7,
    "Q3_K_L": 4.6, "Q3_K_M": 4.3, "Q3_K_S": 3.8, "Q2_K": 3.6, "Q2_K_S": 3.4,
}  # fmt: skip


def _mlx_bits(options: MlxOptions) -> float:
    scale = 32 if options.mode == "affine" else 8  # bits beside each group: scale and bias, or a scale
    high = {"mixed_2_6": 4.0, "mixed_3_4": 3.6, "mixed_3_6": 4.2, "mixed_4_6": 5.0}.get(options.recipe or "")
    return (high or options.scheme.bits) + scale / options.scheme.group_size + 0.2


def _folder(options: Any) -> str:
    return default_folder("{name}", options).name


KINDS: Mapping[str, Kind] = {
    "gguf": Kind(
        GgufOptions,
        folder=lambda _: "{name}-GGUF",
        bits=lambda type_name, _: _GGUF_BITS[file_type(type_name).name],
        ladder=True,
        matrix="imatrix",
        weighted=lambda _: True,
        sizes=("split_max_size",),
        check=lambda o: Overrides(o.tensor_types, o.output_type, o.embedding_type),
    ),
    "mlx": Kind(
        MlxOptions,
        folder=_folder,
        bits=lambda _, options: _mlx_bits(options),
        matrix="importance",
        sizes=("max_shard_size",),
    ),
    "fp8": Kind(
        Fp8Options,
        folder=_folder,
        bits=lambda _, __: 9.2,
        sizes=("max_shard",),
    ),
    "nvfp4": Kind(
        Nvfp4Options,
        folder=_folder,
        bits=lambda _, options: 6.6 if options.scope == NVIDIA else 9.0,
        matrix="importance",
        weighted=lambda given: given.get("scale_search") == "importance",
        sizes=("max_shard",),
    ),
    "merged": Kind(
        MergedOptions,
        folder=lambda _: "{name}-BF16",
        bits=lambda _, __: 16.0,
    ),
}
"""Kinds by the word that a recipe has for them."""
