"""NVFP4: 16 values of 4 bits (E2M1) share an E4M3 scale, and a group of matrices a float32 global scale.

A value is ``level * scale * global_scale`` with a level of 0, 0.5, 1, 1.5, 2, 3, 4 or 6 and a sign in bit 3;
the even column lies in the low four bits of a byte. A block's largest magnitude maps to 6, and the global
scale, ``amax / (6 * 448)``, maps the largest of those to 448. ModelOpt stores the global scale as it is
(``weight_scale_2``), compressed-tensors its inverse (``weight_global_scale``). Matrices that a runtime fuses
need the same one, so it is given: take the largest magnitude of all of them.

The bytes are those of ModelOpt's ``NVFP4QTensor`` without a static calibration
(https://github.com/NVIDIA/TensorRT-Model-Optimizer), or, with ``divides``, those of compressed-tensors'
``nvfp4-pack-quantized`` as llm-compressor calls it (https://github.com/vllm-project/compressed-tensors);
:mod:`qexport.codecs.nvfp4_rows` says where they differ.

Left out: values that are not finite, whose blocks are counted. Values beyond the largest scale are cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qexport.codecs.e2m1 import TOP_LEVEL
from qexport.codecs.e4m3 import E4M3_MAX
from qexport.codecs.jit import compiled
from qexport.codecs.narrow import AS_IT_IS, rounding_of
from qexport.codecs.nvfp4_rows import BLOCK, row_codes, row_scales, row_tops, step_of
from qexport.codecs.source_bits import source_bits, widen
from qexport.errors import UsageProblem

_TOP = np.float32(TOP_LEVEL * E4M3_MAX)
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Nvfp4Rows:
    """Quantized rows.

    Attributes:
        packed: uint8 ``(n, columns / 2)``.
        scales: E4M3 as uint8 ``(n, columns / 16)``.
        bad: how many blocks hold a NaN or infinity.
    """

    packed: np.ndarray
    scales: np.ndarray
    bad: int


def global_scale(amax: float) -> np.float32:
    """The scale that matrices share whose largest magnitude is ``amax``, as ModelOpt stores it.

    Where float32 has no normal number for it, the scale is 1, and such values become zeros.

    Raises:
        UsageProblem: ``amax`` is negative or not finite.
    """
    scale = np.float32(_magnitude(amax)) / _TOP
    return np.float32(scale) if scale >= _TINY else np.float32(1)


def divisor(amax: float, dtype: torch.dtype) -> np.float32:
    """The inverse scale as llm-compressor stores it: 2688 times ``1 / amax``, each rounded to ``dtype``.

    Where that is no finite number the scale is 1, as there. With float16 rows, whose numbers end at 65504, it
    is computed in float32 then: 1 would be far from right.

    Raises:
        UsageProblem: ``amax`` is negative or not finite.
    """
    inverse = _inverse(_magnitude(amax), dtype)
    if dtype == torch.float16 and not np.isfinite(inverse):
        inverse = _inverse(amax, torch.float32)
    return np.float32(inverse if np.isfinite(inverse) else 1)


def quantize(rows: torch.Tensor, shared: np.float32, *, divides: bool = False) -> Nvfp4Rows:
    """Quantize ``(n, columns)`` rows in bfloat16, float16 or float32; columns a multiple of 16.

    Args:
        rows: the values.
        shared: the result of :func:`global_scale`, or of :func:`divisor` with ``divides``.
        divides: whether to round as compressed-tensors does.

    Raises:
        UsageProblem: the rows do not divide into blocks, or the scale is no normal positive number.
    """
    source, shift, made = prepared(rows, shared)
    rounding = rounding_of(rows.dtype) if divides else AS_IT_IS
    bad = _quantize(source, shift, np.float32(shared), divides, rounding, made.packed, made.scales)
    return Nvfp4Rows(made.packed, made.scales, int(bad))


def prepared(rows: torch.Tensor, shared: np.float32) -> tuple[np.ndarray, np.uint32, Nvfp4Rows]:
    """The rows' bits, the shift to those of float32, and room for the result.

    Raises:
        UsageProblem: as :func:`quantize`.
    """
    source, shift = source_bits(rows)
    n, columns = source.shape
    if columns % BLOCK:
        raise UsageProblem(f"rows of {columns} values do not divide into blocks of {BLOCK}")
    if not _TINY <= np.float32(shared) < np.inf:
        raise UsageProblem(f"{shared} cannot be a global scale")
    packed, scales = np.empty((n, columns // 2), np.uint8), np.empty((n, columns // BLOCK), np.uint8)
    return source, shift, Nvfp4Rows(packed, scales, 0)


def _inverse(amax: float, dtype: torch.dtype) -> float:
    one = torch.tensor(max(amax, torch.finfo(dtype).tiny), dtype=dtype)
    return float(one.reciprocal() * float(_TOP))  # how torch divides a number by a tensor


def _magnitude(amax: float) -> float:
    if not 0 <= amax < float("inf"):
        raise UsageProblem(f"{amax} is not the largest magnitude of a matrix")
    return amax


@compiled
def _quantize(
    source: np.ndarray,
    shift: np.uint32,
    shared: np.float32,
    divides: bool,
    rounding: np.uint32,
    packed: np.ndarray,
    scales: np.ndarray,
) -> int:
    bad = 0
    columns, blocks = source.shape[1], source.shape[1] // BLOCK
    values, codes = np.empty(columns, np.uint32), np.empty(BLOCK, np.uint32)
    tops, steps = np.empty(blocks, np.uint32), np.empty(blocks, np.float32)
    for row in range(source.shape[0]):
        # A step at a time for all blocks: they do not wait for each other's divisions.
        widen(source[row], shift, values)
        bad += row_tops(values, tops)
        row_scales(tops, shared, divides, rounding, scales[row])
        for block in range(blocks):
            steps[block] = step_of(scales[row, block], shared, divides)
        row_codes(values, steps, codes, packed[row])
    return bad
