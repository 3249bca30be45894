"""What a model would weigh in each format, planned to the byte from headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import QexportError
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.merged.plan import plan_merged
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qexport.doctor.repaired import Repaired
    from qexport.formats.plan import ArtifactPlan


GGUF_LADDER = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


@dataclass(frozen=True)
class FormatSize:
    """Bytes of one format, and ``bits`` per value of what it holds."""

    format: str
    nbytes: int
    bits: float


def weights_of(repaired: Repaired) -> tuple[list[FormatSize], str | None]:
    """The weights of every format that can hold the model, and why GGUF cannot (an unknown tokenizer, say).

    Folders are those of the defaults, MLX with 6 bits and the head beside it.
    """
    merged = plan_merged(repaired)
    found = [FormatSize("safetensors, repaired", merged.size, merged.bits_per_weight)]
    problem = None
    try:
        plans = plan_gguf(repaired.view(), GGUF_LADDER, GgufOptions())
        found += [FormatSize(f"GGUF {p.label}", p.size, p.bits_per_weight) for p in plans]
    except QexportError as error:
        problem = error.message
    folders: tuple[tuple[str, Callable[[], Sequence[ArtifactPlan]]], ...] = (
        ("MLX 6-bit", lambda: plan_mlx(repaired, MlxOptions(bits=6))),
        ("FP8 block 128", lambda: (plan_fp8(repaired),)),
        ("NVFP4 W4A16 (MLP)", lambda: (plan_nvfp4(repaired, Nvfp4Options()),)),
    )
    for name, make in folders:
        try:
            plans = tuple(make())
        except QexportError:
            continue  # matrices that its blocks do not fit, or a family that its runtime does not know
        values = sum(rows * columns for plan in plans for rows, columns in _matrices(plan))
        data = sum(tensor.nbytes for plan in plans for tensor in plan.tensors)
        found.append(FormatSize(name, sum(plan.size for plan in plans), 8 * data / max(1, values)))
    return found, problem


def _matrices(plan: ArtifactPlan) -> list[tuple[int, int]]:
    return [tensor.matrix_shape for tensor in plan.tensors]
