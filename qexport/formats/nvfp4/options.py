"""What the user may choose about an NVFP4 folder: a value, made by the command line or by a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qexport.assign.aim import Aimed, needs_sensitivity
from qexport.errors import UsageProblem
from qexport.formats.folder import SHARD_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.assign.assignment import Assignment
    from qexport.evidence.imatrix_file import ImportanceMatrix


W4A4 = "NVFP4"
SCHEMES = ("NVFP4A16", W4A4)
"""llm-compressor's names: activations as they are, or in four bits as well."""
NVIDIA = "nvidia"
SCOPES = ("mlp", "mlp+attention", "all-linear", NVIDIA)
"""Scopes by name; anything else is a regular expression."""


@dataclass(frozen=True)
class Nvfp4Options(Aimed):
    """Options of one export.

    A scope, or an aim (:class:`~qexport.assign.aim.Aimed`), which is that of the folder and for which types
    are chosen: NVFP4, FP8, or none. ``like`` is a scope's name.

    Attributes:
        layout: ``modelopt`` (``weight``, ``weight_scale``, ``weight_scale_2``, hf_quant_config.json) or
            ``compressed-tensors`` (``weight_packed``, ``weight_scale``, ``weight_global_scale``). FP8 has a
            scale for a matrix in the one, for a tile of 128 by 128 in the other. By itself ``modelopt``; with
            a scheme the other.
        scheme: ``NVFP4A16`` (by itself; W4A16), or ``NVFP4`` (W4A4): a scale for the inputs of each matrix is
            stored, which is measured on a text.
        scope: what is quantized in the language model's layers: a name of :data:`SCOPES`, or a regular
            expression that is searched in published module paths.
        scale_search: how block scales are chosen: ``max`` as ModelOpt and llm-compressor do, ``mse`` for the
            least squared error, ``importance`` for the least one weighted by ``importance``, which an aim, or
            quality ``best``, takes where this says ``max``.
        importance: an importance matrix, or ``None``.
        feedback: let later columns make up for what rounding earlier ones got wrong; needs a text.
        keep_head: scope ``nvidia`` leaves ``lm_head`` as it is; the other scopes, and compressed-tensors,
            always do.
        max_shard: bytes of tensor data in one file.
        types_from: which type each tensor gets (``qexport.assign``): in a file, or in memory.

    Raises:
        UsageProblem: choices that contradict each other.
    """

    layout: Literal["modelopt", "compressed-tensors"] | None = None
    scheme: Literal["NVFP4A16", "NVFP4"] | None = None
    scope: str = "mlp"
    scale_search: Literal["max", "mse", "importance"] = "max"
    importance: ImportanceMatrix | None = None
    feedback: bool = False
    keep_head: bool = False
    max_shard: int = SHARD_BYTES
    types_from: Path | Assignment | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aim is not None and self.scope != "mlp":
            raise UsageProblem(
                f"{self.aim} chooses types; --scope names them",
                hint=f"Leave it out. For the size of a scope: --like {self.scope}.",
            )
        if needs_sensitivity(self) and self.scale_search == "mse":
            raise UsageProblem(
                f"types for {self.aim or 'the best folder'} are chosen by what errors weigh; mse would weigh "
                "them alike",
                hint="Leave --scale-search out.",
            )
        for name, known in _KNOWN.items():
            if (given := getattr(self, name)) is not None and given not in known:
                raise UsageProblem(f"{name} is {given!r}; there are {', '.join(known)}")
        if self.keep_head and self.scope != NVIDIA:
            raise UsageProblem("only scope nvidia quantizes lm_head")
        if self.scale_search == "importance" and self.importance is None:
            raise UsageProblem(
                "scale_search importance needs an importance matrix",
                hint="Make one with `qexport imatrix MODEL`, or use mse.",
            )
        if self.feedback and self.search != "importance":
            raise UsageProblem(
                "error feedback goes with scale_search importance",
                hint="Make a matrix with `qexport imatrix MODEL`, give it with --importance FILE and "
                "--scale-search importance, and the text that goes along with --corpus FILE.",
            )
        if self.importance is not None and self.search != "importance" and self.scope != NVIDIA:
            raise UsageProblem(
                "the importance matrix would not be used",
                hint="Ask for scale_search importance, or leave it out.",
            )

    @property
    def form(self) -> Literal["modelopt", "compressed-tensors"]:
        """The layout."""
        return self.layout or ("modelopt" if self.scheme is None else "compressed-tensors")

    @property
    def scheme_word(self) -> str:
        """llm-compressor's name of what is asked for."""
        return self.scheme or SCHEMES[0]

    @property
    def input_scales(self) -> bool:
        """Whether scales of inputs are stored, so that a text has to be sent through the model."""
        return self.scheme == W4A4

    @property
    def every_expert(self) -> bool:
        """Whether every expert is shown each token of that text: llm-compressor does so, not ModelOpt."""
        return self.input_scales and self.form != "modelopt"

    @property
    def search(self) -> Literal["max", "mse", "importance"]:
        """How block scales are chosen."""
        chosen = needs_sensitivity(self) and self.importance is not None
        return "importance" if chosen else self.scale_search


_KNOWN = {
    "layout": ("modelopt", "compressed-tensors"),
    "scheme": SCHEMES,
    "scale_search": ("max", "mse", "importance"),
}
