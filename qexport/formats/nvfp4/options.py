"""What the user may choose about an NVFP4 folder: a value, made by the command line or by a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qexport.errors import UsageProblem
from qexport.formats.folder import SHARD_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.assign.assignment import Assignment
    from qexport.evidence.imatrix_file import ImportanceMatrix


NVIDIA = "nvidia"
SCOPES = ("mlp", "mlp+attention", "all-linear", NVIDIA)
"""Scopes by name; anything else is a regular expression."""


@dataclass(frozen=True)
class Nvfp4Options:
    """Options of one export.

    Attributes:
        layout: ``modelopt`` (``weight``, ``weight_scale``, ``weight_scale_2``, hf_quant_config.json) or
            ``compressed-tensors`` (``weight_packed``, ``weight_scale``, ``weight_global_scale``). FP8 has a
            scale for a matrix in the one, for a tile of 128 by 128 in the other.
        scope: what is quantized in the language model's layers: a name of :data:`SCOPES`, or a regular
            expression that is searched in published module paths.
        scale_search: how block scales are chosen: ``max`` as ModelOpt and llm-compressor do, ``mse`` for the
            least squared error, ``importance`` for the least one weighted by ``importance``.
        importance: an importance matrix, or ``None``.
        keep_head: scope ``nvidia`` leaves ``lm_head`` as it is; the other scopes, and compressed-tensors,
            always do.
        max_shard: bytes of tensor data in one file.
        types_from: which type each tensor gets (``qexport.assign``): in a file, or in memory.

    Raises:
        UsageProblem: choices that contradict each other.
    """

    layout: Literal["modelopt", "compressed-tensors"] = "modelopt"
    scope: str = "mlp"
    scale_search: Literal["max", "mse", "importance"] = "max"
    importance: ImportanceMatrix | None = None
    keep_head: bool = False
    max_shard: int = SHARD_BYTES
    types_from: Path | Assignment | None = None

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise UsageProblem(f"{name} is {getattr(self, name)!r}; there are {', '.join(known)}")
        if self.keep_head and self.scope != NVIDIA:
            raise UsageProblem("only scope nvidia quantizes lm_head")
        if self.scale_search == "importance" and self.importance is None:
            raise UsageProblem(
                "scale_search importance needs an importance matrix",
                hint="Make one with `qexport imatrix MODEL`, or use mse.",
            )
        if self.importance is not None and self.scale_search != "importance" and self.scope != NVIDIA:
            raise UsageProblem(
                "the importance matrix would not be used",
                hint="Ask for scale_search importance, or leave it out.",
            )


_KNOWN = {"layout": ("modelopt", "compressed-tensors"), "scale_search": ("max", "mse", "importance")}
