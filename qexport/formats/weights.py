"""What a model would weigh in each format: exact where qexport writes it, an estimate where it is to come.

<<<<<<< HEAD
GGUF, FP8 and the repaired checkpoint are planned to the byte. For MLX and NVFP4 the numbers follow from which
roles those formats quantize (see the designs of mlx-lm and NVIDIA's W4A16 recipes): good to a percent or so,
and marked as estimates.
=======
GGUF, NVFP4 and the repaired checkpoint are planned to the byte. For MLX and FP8 the numbers follow from which
roles those formats quantize (see the designs of mlx-lm and the official Qwen FP8 repositories): good to a
percent or so, and marked as estimates.
>>>>>>> nvfp4
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.errors import QexportError
from qexport.families.roles import NORM_ROLES, Block, Role
from qexport.formats.fp8.plan import plan_fp8
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.formats.merged import plan_merged
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor, ModelView

__all__ = ["GGUF_LADDER", "Weight", "weights_of"]

GGUF_LADDER = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")

_SMALL = NORM_ROLES | {
    Role.LINEAR_CONV,
    Role.LINEAR_A_LOG,
    Role.LINEAR_DT_BIAS,
    Role.ROUTER,
    Role.SHARED_EXPERT_ROUTER,
}


@dataclass(frozen=True)
class Weight:
    """Bytes of one format; ``exact`` or an estimate. ``bits`` per value of what the format holds."""

    format: str
    nbytes: int
    bits: float
    exact: bool


def weights_of(repaired: Repaired) -> tuple[list[Weight], str | None]:
    """The weights of every format, and why GGUF has none (an unknown tokenizer, say), if so."""
    view = repaired.view()
    merged = plan_merged(repaired)
    found = [Weight("safetensors, repaired", merged.size, merged.bits_per_weight, exact=True)]
    problem = None
    try:
        plans = plan_gguf(view, GGUF_LADDER, GgufOptions())
        found += [Weight(f"GGUF {p.label}", p.size, p.bits_per_weight, exact=True) for p in plans]
    except QexportError as error:
        problem = error.message
<<<<<<< HEAD
    return [*found, *_fp8(repaired), *_estimates(view)], problem


def _fp8(repaired: Repaired) -> Iterator[Weight]:
    """Nothing, where no matrix can become FP8."""
    try:
        plan = plan_fp8(repaired)
    except QexportError:
        return
    yield Weight("FP8 block 128", plan.size, plan.bits_per_weight, exact=True)
=======
    return [*found, *_estimates(view), *_nvfp4(repaired)], problem


def _nvfp4(repaired: Repaired) -> Iterator[Weight]:
    """Nothing where the model's MLPs do not divide into blocks."""
    with suppress(QexportError):
        plan = plan_nvfp4(repaired, Nvfp4Options())
        yield Weight("NVFP4 W4A16 (MLP)", plan.size, plan.bits_per_weight, exact=True)
>>>>>>> nvfp4


def _estimates(view: ModelView) -> Iterator[Weight]:
    text = [tensor for tensor in view if tensor.block is not Block.VISION]
    yield _estimate("MLX 6-bit", text, _mlx6)
<<<<<<< HEAD
    yield _estimate("NVFP4 W4A16 (MLP)", list(view), _nvfp4)
=======
    yield _estimate("FP8 block 128", list(view), _fp8)
>>>>>>> nvfp4


def _estimate(name: str, tensors: list[ModelTensor], bits_of: Callable[[ModelTensor], float]) -> Weight:
    bits = sum(tensor.data.numel * bits_of(tensor) for tensor in tensors)
    values = sum(tensor.data.numel for tensor in tensors)
    return Weight(name, int(bits / 8), bits / max(1, values), exact=False)


def _stored_bits(tensor: ModelTensor) -> float:
    return 8 * tensor.data.nbytes / max(1, tensor.data.numel)


def _mlx6(tensor: ModelTensor) -> float:
    """6 bits and a bf16 scale and bias per group of 64; the MTP head stays bf16 in its own folder."""
    whole = len(tensor.shape) >= 2 and tensor.shape[-1] % 64 == 0 and tensor.role not in _SMALL
    return 6.5 if whole and tensor.block is not Block.MTP else _stored_bits(tensor)


<<<<<<< HEAD
def _nvfp4(tensor: ModelTensor) -> float:
    """4 bits and an e4m3 scale per group of 16."""
    whole = tensor.role in _MLP and tensor.shape[-1] % 16 == 0 and tensor.block is Block.TRUNK
    return 4.5 if whole else _stored_bits(tensor)
=======
def _fp8(tensor: ModelTensor) -> float:
    """8 bits and a bf16 scale per 128x128 block."""
    whole = len(tensor.shape) >= 2 and all(size % 128 == 0 for size in tensor.shape[-2:])
    linear = tensor.role not in _FP8_EXCLUDED and tensor.block is not Block.VISION
    return 8 + 16 / 128**2 if whole and linear else _stored_bits(tensor)
>>>>>>> nvfp4
