"""What the user may choose about an MLX folder: a value, made by the command line or by a program.

Numbers and words are mlx-lm's. Where it has defaults per mode, ``None`` takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.assign.aim import Aimed, wants_best
from qexport.errors import UsageProblem, closest
from qexport.formats.folder import SHARD_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from qexport.assign.assignment import Assignment
    from qexport.evidence.imatrix_file import ImportanceMatrix


AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
MODES: Mapping[str, tuple[int, int]] = {
    "affine": (64, 4),
    "mxfp4": (32, 4),
    "nvfp4": (16, 4),
    "mxfp8": (32, 8),
}
"""Mode to its group size and bits; fixed but for affine, where they are the defaults."""
RECIPES: Mapping[str, tuple[int, int]] = {
    "mixed_2_6": (2, 6),
    "mixed_3_4": (3, 4),
    "mixed_3_6": (3, 6),
    "mixed_4_6": (4, 6),
}
"""Recipe to its low and high bits."""
MTP_LAYOUTS = ("drafter", "mtplx", "vllm-mlx", "embedded", "none")
_UNSAID = (None, None, "affine", None)
DTYPES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Scheme:
    """How one module is stored."""

    group_size: int
    bits: int
    mode: str = "affine"

    @property
    def label(self) -> str:
        return f"{self.bits}-bit g{self.group_size}" if self.mode == "affine" else self.mode

    @classmethod
    def labelled(cls, label: str) -> Scheme:
        """The reverse of :attr:`label`. Raises UsageProblem: there is no such scheme."""
        found = SCHEMES.get(label)
        if found is None:
            raise UsageProblem(f"unknown MLX type {label!r}{closest(label, SCHEMES)}")
        return found


SCHEMES: Mapping[str, Scheme] = {
    scheme.label: scheme
    for scheme in (
        *(Scheme(group, bits) for bits in AFFINE_BITS for group in AFFINE_GROUPS),
        *(Scheme(group, bits, mode) for mode, (group, bits) in MODES.items() if mode != "affine"),
    )
}


@dataclass(frozen=True)
class MlxOptions(Aimed):
    """Everything that may be chosen.

    One type for all, a recipe, or an aim (:class:`~qexport.assign.aim.Aimed`), which is that of the trunk's
    folder and for which types are chosen: affine ones, of 3 bits and more. ``like`` is a label: ``6bit``,
    ``mixed_3_6``, ``mxfp4``.

    Attributes:
        bits: of affine codes: 2, 3, 4 (the default, as mlx-lm's), 5, 6 or 8.
        group_size: of affine groups: 32, 64 (default) or 128.
        mode: ``affine``, ``mxfp4``, ``mxfp8`` or ``nvfp4``.
        recipe: ``mixed_2_6`` and so on: two widths, the larger one for v_proj and down_proj of some layers
            and for lm_head. ``bits`` is then only what config.json names as the default.
        text_only: leave the vision tower out, as mlx-lm does; otherwise it is there for mlx-vlm.
        dtype: of scales and of what is not quantized: ``bfloat16``, ``float16``, ``float32``; by default
            what config.json says.
        mtp: layouts of the head, several at once: ``drafter`` (a folder beside, for mlx-vlm and others),
            ``mtplx`` and ``vllm-mlx`` (files of those programs inside the folder), ``embedded`` (oMLX, exo:
            among the model's tensors), or ``none``.
        mtp_bits: affine bits of the head's projections; unquantized when not given.
        mtp_group_size: of those.
        importance: the weights of a weighted fit of affine scales and biases; plain when not given.
        feedback: let later columns make up for what rounding earlier ones got wrong; needs a text.
        max_shard_size: bytes of tensor data in one file.
        types_from: which type each tensor gets (``qexport.assign``): in a file, or in memory, or another
            MLX folder; of the trunk.
    """

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    recipe: str | None = None
    text_only: bool = False
    dtype: str | None = None
    mtp: tuple[str, ...] = ("drafter",)
    mtp_bits: int | None = None
    mtp_group_size: int = 64
    importance: ImportanceMatrix | None = None
    feedback: bool = False
    max_shard_size: int = SHARD_BYTES
    types_from: Path | Assignment | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aim is not None and (self.bits, self.group_size, self.mode, self.recipe) != _UNSAID:
            raise UsageProblem(
                f"{self.aim} chooses types; --bits, --group-size, --mode and --recipe name them",
                hint="Leave them out. For the size of a type: --like 6bit, --like mixed_3_6.",
            )
        _known("--mode", self.mode, tuple(MODES))
        if self.recipe is not None:
            _known("--recipe", self.recipe, tuple(RECIPES))
        if self.dtype is not None:
            _known("--dtype", self.dtype, tuple(DTYPES))
        for layout in self.mtp:
            _known("--mtp-layout", layout, MTP_LAYOUTS)
        if not self.mtp or ("none" in self.mtp and len(self.mtp) > 1):
            raise UsageProblem("--mtp-layout none stands alone; without a layout there is nothing to write")
        if self.mode != "affine":
            self._check_fixed()
        _known("--bits", self.scheme.bits, AFFINE_BITS)
        _known("--mtp-group-size", self.mtp_group_size, AFFINE_GROUPS)
        if self.mode == "affine":
            _known("--group-size", self.scheme.group_size, AFFINE_GROUPS)
        if self.mtp_bits is not None:
            _known("--mtp-bits", self.mtp_bits, AFFINE_BITS)

    def _check_fixed(self) -> None:
        group, bits = MODES[self.mode]
        if self.recipe is not None:
            raise UsageProblem(f"recipe {self.recipe} is for mode affine, not {self.mode}")
        if self.importance is not None and not wants_best(self):
            raise UsageProblem(
                f"importance has no use in mode {self.mode}: there is no scale to fit",
                hint="Leave --importance out, or use --mode affine.",
            )
        if self.feedback:
            raise UsageProblem(f"error feedback is for mode affine, not {self.mode}")
        if self.bits not in (None, bits) or self.group_size not in (None, group):
            raise UsageProblem(f"mode {self.mode} has {bits} bits and groups of {group}, nothing else")

    @property
    def scheme(self) -> Scheme:
        """The default of all modules."""
        group, bits = MODES[self.mode]
        return Scheme(self.group_size or group, self.bits or bits, self.mode)

    @property
    def head_scheme(self) -> Scheme | None:
        """Of the head's projections."""
        return None if self.mtp_bits is None else Scheme(self.mtp_group_size, self.mtp_bits)

    @property
    def label(self) -> str:
        """What publishers append to a name: ``6bit``, ``mxfp4``, ``mixed_3_6``; for an aim ``QX-4.8bpw``."""
        if self.aim is not None:
            return self.aim.label
        if self.recipe:
            return self.recipe
        return f"{self.scheme.bits}bit" if self.mode == "affine" else self.mode


def _known(option: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise UsageProblem(f"{option} is {value}; it may be {', '.join(map(str, known))}")
