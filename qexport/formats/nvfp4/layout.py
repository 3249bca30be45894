"""How the two layouts store one NVFP4 matrix: names of its tensors, and which way the global scale goes.

ModelOpt's: ``weight`` (uint8), ``weight_scale`` (E4M3), ``weight_scale_2`` (a float32 number to multiply by).
compressed-tensors': ``weight_packed``, ``weight_scale``, ``weight_global_scale`` (one float32 to divide by).
Where inputs are in four bits, too (W4A4), one float32 more for all inputs of the matrix, which goes the same
way: ``input_scale`` in ModelOpt's, ``input_global_scale`` in the other. The levels and block scales are laid
out alike. FP8 with one scale is ModelOpt's ``FP8``: ``weight``, ``weight_scale`` and ``input_scale``, two
float32 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qexport.checkpoint.shards import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping


Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Spelling:
    """Names after the module path, and the shape of both global scales; ``divides`` as in the codec."""

    packed: str
    scale: str
    shared: str
    inputs: str
    shared_shape: tuple[int, ...]
    divides: bool


LAYOUTS: Mapping[Literal["modelopt", "compressed-tensors"], Spelling] = {
    "modelopt": Spelling("weight", "weight_scale", "weight_scale_2", "input_scale", (), divides=False),
    "compressed-tensors": Spelling(
        "weight_packed", "weight_scale", "weight_global_scale", "input_global_scale", (1,), divides=True
    ),
}


def nvfp4_specs(layout: Spelling, module: str, rows: int, columns: int, *, inputs: bool = False) -> Specs:
    """The stored tensors of one matrix, in the order of the encoder's streams; ``inputs``: and the scale of
    what it is multiplied with."""
    once = [layout.shared, *([layout.inputs] if inputs else [])]
    return (
        TensorSpec(f"{module}.{layout.packed}", "U8", (rows, columns // 2)),
        TensorSpec(f"{module}.{layout.scale}", "F8_E4M3", (rows, columns // 16)),
        *(TensorSpec(f"{module}.{name}", "F32", layout.shared_shape) for name in once),
    )


def fp8_specs(module: str, rows: int, columns: int) -> Specs:
    """The stored tensors of an FP8 matrix of NVIDIA's mixed recipe."""
    return (
        TensorSpec(f"{module}.weight", "F8_E4M3", (rows, columns)),
        TensorSpec(f"{module}.weight_scale", "F32", ()),
        TensorSpec(f"{module}.input_scale", "F32", ()),
    )
