"""The way back: what the bytes of a stored type stand for, as float32.

=============  ===========================================================================================
E2M1           four bits: a sign, then 0, 0.5, 1, 1.5, 2, 3, 4 or 6; the even column in the low bits of a byte
E4M3           torch's ``float8_e4m3fn``
E8M0           a power of two: the byte minus 127 is the exponent, 255 is not a number
=============  ===========================================================================================

:func:`decode` takes what an encoder made; readers of artifacts (``artifacts/forms.py``) use the same
functions on what is stored. They are plain torch and independent of the kernels that write: what they decode
is what is checked. Results are products and sums in float32; nothing is rounded to bfloat16 on the way, as
some kernels do. ggml's types and MLX's integers have loops of their own (:mod:`qexport.codecs.decoders`,
:mod:`qexport.codecs.mlx_affine`).

https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import torch_dtype
from qexport.codecs.contract import (
    FP8_TILE,
    Blocks,
    Float,
    Fp8Matrix,
    Fp8Rows,
    Fp8Tiles,
    MlxAffine,
    MlxFloat,
    Nvfp4,
    Nvfp4Blocks,
)
from qexport.codecs.decoders import decode_rows
from qexport.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

    from qexport.codecs.contract import Known, StoredType


_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def decode(
    stored: StoredType, streams: Sequence[np.ndarray], columns: int, known: Known, source: str = "BF16"
) -> torch.Tensor:
    """The numbers of rows that were encoded.

    Args:
        stored: their type.
        streams: what its encoder made of the rows, ``Packed.streams``.
        columns: values of a row.
        known: what the encoder was given: a scale of the whole matrix is found from it where the rows are not
            the matrix's first.
        source: the dtype that the rows had, as safetensors spells it; compressed-tensors has scales in it.

    Returns:
        float32 ``(rows, columns)``, what the format's reader makes of them.

    Raises:
        UsageProblem: there is no way back from this type.
    """
    import torch

    if isinstance(stored, Float | Blocks):
        return torch.from_numpy(decode_rows(stored.name, streams[0], columns))
    codes, *scales = (torch.from_numpy(stream) for stream in streams)
    match stored:
        case Nvfp4Blocks():
            values = torch.from_numpy(decode_rows(stored.name, streams[0], columns))
            return values.mul_(_shared(stored, scales[0], known, source))
        case MlxAffine():
            from qexport.codecs.mlx_affine import dequantize

            steps, biases = (part.view(torch_dtype(stored.dtype)).float() for part in scales)
            return dequantize(streams[0], steps, biases, stored.bits)
        case MlxFloat():
            bits = codes.shape[1] * 8 // columns
            return microscaled(codes, scales[0], bits, powers_of_two=stored.name != "nvfp4")
        case Fp8Tiles():
            of_tiles = scales[0].view(torch_dtype(stored.scale_dtype(source)))
            return tiled(codes, of_tiles.repeat_interleave(FP8_TILE, dim=0))
        case Fp8Rows():
            return e4m3(codes).mul_(scales[0].view(torch_dtype(stored.scale_dtype(source))).float())
        case Fp8Matrix():
            return e4m3(codes).mul_(_shared(stored, scales[0], known, source))
        case Nvfp4():
            shared = _shared(stored, scales[1], known, source)
            return microscaled(codes, scales[0], 4, shared=shared, divides=stored.divides)
    raise UsageProblem(f"{stored.name} cannot be decoded")


def _shared(stored: Fp8Matrix | Nvfp4, first: torch.Tensor, known: Known, source: str) -> torch.Tensor:
    """The scale of a matrix: among the streams of its first rows."""
    import torch

    from qexport.codecs import fp8_tensor, nvfp4

    if len(first):
        return first.view(())
    if isinstance(stored, Fp8Matrix):
        return torch.tensor(fp8_tensor.tensor_scale(known.largest))
    if stored.divides:
        return torch.tensor(nvfp4.divisor(known.largest, torch_dtype(source)))
    return torch.tensor(nvfp4.global_scale(known.largest))


def e2m1(packed: torch.Tensor) -> torch.Tensor:
    """uint8 ``(n, columns / 2)`` to float32 ``(n, columns)``."""
    import torch

    table = torch.tensor([*_LEVELS, *(-level for level in _LEVELS)])
    pairs = torch.stack((packed & 15, packed >> 4), dim=-1)
    return table[pairs.view(len(packed), -1).int()]


def e4m3(codes: torch.Tensor) -> torch.Tensor:
    """uint8 or float8 to float32."""
    import torch

    return codes.view(torch.float8_e4m3fn).float()


def e8m0(codes: torch.Tensor) -> torch.Tensor:
    """uint8 or float8 to float32."""
    import torch

    return codes.view(torch.float8_e8m0fnu).float()


def tiled(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """E4M3 ``(n, columns)`` times ``(n, tiles)``: each row's scales, those of runs of 128 columns."""
    values = e4m3(codes)
    return values.mul_(scales.float().repeat_interleave(FP8_TILE, dim=1)[:, : values.shape[1]])


def microscaled(
    packed: torch.Tensor,
    scales: torch.Tensor,
    bits: int,
    *,
    powers_of_two: bool = False,
    shared: torch.Tensor | None = None,
    divides: bool = False,
) -> torch.Tensor:
    """E2M1 (4 bits) or E4M3 (8 bits) in groups of columns with a scale each.

    Args:
        packed: uint8 ``(n, columns * bits / 8)``.
        scales: ``(n, groups)``, E4M3, or E8M0 where ``powers_of_two``.
        shared: a scale of those scales, for all rows or for each, ``(n, 1)``.
        divides: whether that one is divided by.
    """
    values = e4m3(packed) if bits == 8 else e2m1(packed)
    values = grouped(values, e8m0(scales) if powers_of_two else e4m3(scales))
    if shared is None:
        return values
    return values.div_(shared) if divides else values.mul_(shared)


def grouped(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``(n, columns)`` values, in place, times ``(n, groups)`` scales of equal runs of columns."""
    n, groups = scales.shape
    values.view(n, groups, -1).mul_(scales[:, :, None])
    return values
