"""NVFP4: 16 values of 4 bits (E2M1) share an E4M3 scale, and a group of matrices a float32 global scale.

A value is ``level * scale * global_scale`` with a level of 0, 0.5, 1, 1.5, 2, 3, 4 or 6 and a sign in bit 3;
the even column lies in the low four bits of a byte. A block's largest magnitude maps to 6, and the global
scale, ``amax / (6 * 448)``, maps the largest of those to 448. ModelOpt stores the global scale as it is
(``weight_scale_2``), compressed-tensors its inverse (``weight_global_scale``). Matrices that a runtime fuses
need the same one, so it is given: take the largest magnitude of all of them.

Two libraries define the bytes, and they round at different places:

* ModelOpt (``NVFP4QTensor`` without a static calibration,
  https://github.com/NVIDIA/TensorRT-Model-Optimizer) multiplies: a block's scale is ``top / (6 * shared)``,
  limited to 2**-9 to 448, and 1 for a block of zeros; a value is divided by ``scale * shared``, rounded to
  float32.
* compressed-tensors (``nvfp4-pack-quantized`` as llm-compressor calls it,
  https://github.com/vllm-project/compressed-tensors) divides: a block's scale is ``(top / 6) * shared``,
  where ``top / 6`` is rounded to the rows' dtype, limited to 448, and 2**-3 where it rounds to zero; a value
  is divided by ``scale / shared``.

A negative zero loses its sign in both, a small negative number keeps it.

Searched scales: each block takes the E4M3 scale that loses least, not the one of its maximum. Between 4 and 6
there is no level, so a block whose largest values map there is often better served by a larger scale that
maps its maximum to 4 ("four over six", https://arxiv.org/abs/2512.02010), or by one of the neighbours of
either: from 4 below the usual scale, where the maximum is cut off, to 6 above it. The loss is the squared
error, each column weighted with the importance of its input where that is known; the usual scale stays where
no other is better. On normal and on real weights the squared error falls by 27 to 30 %. Every reader reads
the result.

Left out: values that are not finite, whose blocks are counted; values beyond the largest scale are cut off;
other global scales, of which one that leaves room for a larger scale in every block gains nothing (0.1 %).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qexport.codecs.contract import Known, Nvfp4, Packed
from qexport.codecs.jit import compiled, float_of
from qexport.codecs.small_floats import (
    AS_IT_IS,
    E4M3_MAX,
    TOP_LEVEL,
    e2m1_code,
    e2m1_nearest,
    e4m3_bits,
    e4m3_value,
    narrow,
    rounding_of,
)
from qexport.codecs.source_bits import source_bits, widen
from qexport.errors import UsageProblem

BLOCK = 16

_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
_ZERO, _ONE = np.float32(0), np.float32(1)
_SMALLEST_SCALE = np.float32(2.0**-9)
_EIGHTH = np.uint8(0x20)
_BELOW, _ABOVE = 4, 6
_LAST = 0x7E  # E4M3 of 448
_TOP = np.float32(TOP_LEVEL * E4M3_MAX)
_TINY = np.finfo(np.float32).tiny


def encode(stored: Nvfp4, rows: torch.Tensor, known: Known) -> Packed:
    """Levels, block scales, and with the first rows what is stored once."""
    shared = shared_scale(stored, rows.dtype, known.largest)
    search = stored.scales != "max"
    made = quantize(rows, shared, divides=stored.divides, search=search, importance=known.importance)
    return Packed((made.packed, made.scales, *stored_once(stored, rows.dtype, known)), made.bad)


def stored_once(stored: Nvfp4, dtype: torch.dtype, known: Known) -> tuple[np.ndarray, ...]:
    """Streams of float32 with one number for a matrix, which comes with its first rows: the global scale, and
    that of its inputs where the type has one."""
    scales = [shared_scale(stored, dtype, known.largest)]
    if stored.inputs:
        scales.append(input_scale(stored, dtype, known.inputs or 0.0))
    return tuple(np.array([scale] if known.begins else [], np.float32) for scale in scales)


def shared_scale(stored: Nvfp4, dtype: torch.dtype, largest: float) -> np.float32:
    """The global scale as the type stores it, of rows of that dtype."""
    return divisor(largest, dtype) if stored.divides else global_scale(largest)


def input_scale(stored: Nvfp4, dtype: torch.dtype, largest: float) -> np.float32:
    """The scale of inputs as the type stores it, of activations of that dtype.

    Where nothing but zeros was seen, llm-compressor stores 1, ModelOpt what leaves room for 6
    (``_sanitize_export_amax``).
    """
    return divisor(largest, dtype) if stored.divides else global_scale(largest or float(TOP_LEVEL))


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


def quantize(
    rows: torch.Tensor,
    shared: np.float32,
    *,
    divides: bool = False,
    search: bool = False,
    importance: np.ndarray | None = None,
) -> Nvfp4Rows:
    """Quantize ``(n, columns)`` rows in bfloat16, float16 or float32; columns a multiple of 16.

    Args:
        rows: the values.
        shared: the result of :func:`global_scale`, or of :func:`divisor` with ``divides``.
        divides: whether to round as compressed-tensors does.
        search: take the best of the scales around the usual one.
        importance: mean squared inputs, float32 ``(columns,)``, for the search; all columns count alike
            without it.

    Raises:
        UsageProblem: the rows do not divide into blocks, the scale is no normal positive number, or
            importance is of another size.
    """
    source, shift = source_bits(rows)
    n, columns = source.shape
    if columns % BLOCK:
        raise UsageProblem(f"rows of {columns} values do not divide into blocks of {BLOCK}")
    if not _TINY <= np.float32(shared) < np.inf:
        raise UsageProblem(f"{shared} cannot be a global scale")
    weights = np.ones(columns, np.float32) if importance is None else importance
    if weights.shape != (columns,) or weights.dtype != np.float32:
        raise UsageProblem(f"importance of {columns} columns cannot be {weights.dtype} {weights.shape}")
    weights = np.require(weights, requirements=["C", "A", "W"])
    packed, scales = np.empty((n, columns // 2), np.uint8), np.empty((n, columns // BLOCK), np.uint8)
    rounding = rounding_of(rows.dtype) if divides else AS_IT_IS
    bad = _quantize(source, shift, np.float32(shared), divides, rounding, search, weights, packed, scales)
    return Nvfp4Rows(packed, scales, int(bad))


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
    search: bool,
    weights: np.ndarray,
    packed: np.ndarray,
    scales: np.ndarray,
) -> int:
    bad = 0
    columns, blocks = source.shape[1], source.shape[1] // BLOCK
    values, codes = np.empty(columns, np.uint32), np.empty(BLOCK, np.uint32)
    tops, steps = np.empty(blocks, np.uint32), np.empty(blocks, np.float32)
    parts = np.empty(BLOCK, np.float32)
    for row in range(source.shape[0]):
        # A step at a time for all blocks: they do not wait for each other's divisions.
        widen(source[row], shift, values)
        bad += _row_tops(values, tops)
        _row_scales(tops, shared, divides, rounding, scales[row])
        if search:
            for block in range(blocks):
                low, high = block * BLOCK, (block + 1) * BLOCK
                if np.uint32(0) < tops[block] < _INFINITY:
                    scales[row, block] = _best_scale(
                        values[low:high], weights[low:high], scales[row, block], shared, divides, parts
                    )
        for block in range(blocks):
            steps[block] = step_of(scales[row, block], shared, divides)
        _row_codes(values, steps, codes, packed[row])
    return bad


@compiled
def _row_tops(values: np.ndarray, tops: np.ndarray) -> int:
    """Each block's largest magnitude, as bits; returns how many blocks hold a NaN or infinity."""
    bad = 0
    for block in range(len(tops)):
        top = np.uint32(0)
        for i in range(BLOCK):
            top = max(top, np.uint32(values[block * BLOCK + i] & _MAGNITUDE))
        tops[block] = top
        bad += 1 if top >= _INFINITY else 0
    return bad


@compiled
def _row_scales(
    tops: np.ndarray, shared: np.float32, divides: bool, rounding: np.uint32, scales: np.ndarray
) -> None:
    """Each block's E4M3 scale: its largest magnitude becomes 6. ``rounding`` as in ``narrow``."""
    unit = np.float32(TOP_LEVEL * shared)
    for block in range(len(tops)):
        if divides:
            scale = np.float32(narrow(float_of(tops[block]) / TOP_LEVEL, rounding) * shared)
            byte = e4m3_bits(scale if scale < E4M3_MAX else E4M3_MAX)
            scales[block] = byte if byte else _EIGHTH
        else:
            scale = np.float32(float_of(tops[block]) / unit)
            scale = scale if scale != _ZERO else _ONE
            scale = scale if scale > _SMALLEST_SCALE else _SMALLEST_SCALE
            scales[block] = e4m3_bits(scale if scale < E4M3_MAX else E4M3_MAX)


@compiled
def step_of(scale: np.uint8, shared: np.float32, divides: bool) -> np.float32:
    """What a level of 1 is worth in a block with this scale."""
    value = e4m3_value(scale)
    step: np.float32 = value / shared if divides else value * shared
    return step


@compiled
def _row_codes(values: np.ndarray, steps: np.ndarray, codes: np.ndarray, packed: np.ndarray) -> None:
    """Pack float32 bits; ``steps`` has one for each block, ``codes`` is scratch of 16 words."""
    for block in range(len(steps)):
        for i in range(BLOCK):
            bits = values[block * BLOCK + i]
            level = float_of(np.uint32(bits & _MAGNITUDE)) / steps[block]
            negative = np.uint32(8) if level > _ZERO else np.uint32(0)
            codes[i] = e2m1_code(level) | (np.uint32(bits >> np.uint32(28)) & negative)
        for i in range(BLOCK // 2):
            pair = codes[2 * i] | codes[2 * i + 1] << np.uint32(4)
            packed[block * (BLOCK // 2) + i] = np.uint8(pair)


@compiled
def _loss(values: np.ndarray, weights: np.ndarray, step: np.float32, parts: np.ndarray) -> np.float32:
    """The weighted squared error of a block; ``parts`` is scratch: sums in a fixed order, eight at a time."""
    inverse = _ONE / step
    for i in range(BLOCK):
        magnitude = float_of(np.uint32(values[i] & _MAGNITUDE))
        error = magnitude - e2m1_nearest(magnitude * inverse) * step
        parts[i] = error * error * weights[i]
    for i in range(8):
        parts[i] += parts[i + 8]
    for i in range(4):
        parts[i] += parts[i + 4]
    loss: np.float32 = (parts[0] + parts[2]) + (parts[1] + parts[3])
    return loss


@compiled
def searched_scale(
    values: np.ndarray,
    weights: np.ndarray,
    shared: np.float32,
    divides: bool,
    rounding: np.uint32,
    parts: np.ndarray,
) -> np.uint8:
    """The scale of one block of float32 bits; ``parts`` is scratch of 16 float32."""
    top, scale = np.empty(1, np.uint32), np.empty(1, np.uint8)
    _row_tops(values, top)
    _row_scales(top, shared, divides, rounding, scale)
    found: np.uint8 = scale[0]
    if np.uint32(0) < top[0] < _INFINITY:
        found = _best_scale(values, weights, found, shared, divides, parts)
    return found


@compiled
def _best_scale(
    values: np.ndarray,
    weights: np.ndarray,
    usual: np.uint8,
    shared: np.float32,
    divides: bool,
    parts: np.ndarray,
) -> np.uint8:
    best, least = usual, _loss(values, weights, step_of(usual, shared, divides), parts)
    for candidate in range(max(1, int(usual) - _BELOW), min(_LAST, int(usual) + _ABOVE) + 1):
        loss = _loss(values, weights, step_of(np.uint8(candidate), shared, divides), parts)
        if loss < least:
            best, least = np.uint8(candidate), loss
    return best
