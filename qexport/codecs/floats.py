"""F32, F16 and BF16: one float per value, equal to what gguf-py writes.

Widening is exact. Narrowing rounds to nearest even; a value of 65520 or more becomes infinite in
F16, as in numpy. torch narrows at twice numpy's speed with the same result, but for the payload
of NaNs; rows that have any are done again as gguf-py does them:
https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/quants.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import torch_dtype
from qexport.codecs.contract import Float, Known, Moved, Packed
from qexport.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch


def to_f32(rows: torch.Tensor) -> np.ndarray:
    """``(n, columns)`` to ``(n, 4 * columns)`` bytes."""
    import torch

    return _bytes(rows.to(torch.float32))


def to_f16(rows: torch.Tensor) -> np.ndarray:
    """``(n, columns)`` to ``(n, 2 * columns)`` bytes; a plain copy of float16 rows."""
    import numpy as np
    import torch

    packed = _bytes(rows.to(torch.float16))
    if rows.dtype != torch.float16 and _has_nan(packed, 0x7C00):
        with np.errstate(over="ignore"):
            packed = rows.to(torch.float32).numpy().astype(np.float16).view(np.uint8)
    return packed


def to_bf16(rows: torch.Tensor) -> np.ndarray:
    """``(n, columns)`` to ``(n, 2 * columns)`` bytes; a plain copy of bfloat16 rows."""
    import numpy as np
    import torch

    packed = _bytes(rows.to(torch.bfloat16))
    if rows.dtype != torch.bfloat16 and _has_nan(packed, 0x7F80):
        bits = rows.to(torch.float32).contiguous().view(torch.int32).numpy()
        quiet = ((bits >> 16) | 0x40).astype(np.uint16)
        packed = np.where(rows.isnan().numpy(), quiet, packed.view(np.uint16)).view(np.uint8)
    return packed


def _has_nan(packed: np.ndarray, infinity: int) -> bool:
    """Whether 16-bit floats hold a NaN: magnitude bits above those of infinity."""
    import numpy as np

    return bool(((packed.view(np.uint16) & np.uint16(0x7FFF)) > infinity).any())


def _bytes(rows: torch.Tensor) -> np.ndarray:
    import torch

    view: np.ndarray = rows.contiguous().view(torch.uint8).numpy()
    return view


FLOAT_CODECS: Mapping[str, Callable[[torch.Tensor], np.ndarray]] = {
    "F32": to_f32,
    "F16": to_f16,
    "BF16": to_bf16,
}


def encode(stored: Float, rows: torch.Tensor, known: Known) -> Packed:
    """One stream. Raises InputError where a finite value has become infinite."""
    import numpy as np
    import torch

    if stored.through is not None:
        rows = rows.to(torch_dtype(stored.through))
    packed = FLOAT_CODECS[stored.name](rows)
    if stored.name == "F16" and rows.dtype != torch.float16 and len(rows):
        infinite = (packed.view(np.uint16) & np.uint16(0x7FFF)) == 0x7C00
        if infinite.any() and (lost := int((torch.from_numpy(infinite) & rows.isfinite()).sum())):
            raise InputError(
                f"F16 cannot hold {lost} of the values, the largest is {float(rows.abs().max()):g}",
                hint="use BF16 or F32 for this tensor",
            )
    return Packed((packed,))


def move(stored: Moved, rows: torch.Tensor, known: Known) -> Packed:
    """Rows of bytes, as they are."""
    return Packed((rows.contiguous().numpy(),))
