"""The types that our own kernels encode, and the door to those kernels.

A kernel module has one function::

    encode(type_name, halves, words, importance, out) -> bad

``halves`` and ``words`` are the rows as :mod:`qexport.codecs.tiles` explains, ``importance`` is float32
``(columns,)`` or empty, ``out`` uint8 ``(n, row_bytes)`` to be filled. It returns the number of places
that hold what the type cannot: NaN, infinity, a scale beyond float16; 0 if all is well. It allocates only
scratch, runs in one thread without the GIL, and writes the same bytes for every split of the rows.

Shapes and dtypes are checked here, once. A type is added by a row of ``KERNELS``; the modules are imported
when first used, because they import numba. Rows are worked on 32 at a time: calls with a multiple of that
waste nothing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from qexport.codecs.contract import Blocks, Known, Packed, chunk_rows
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.errors import UsageProblem

if TYPE_CHECKING:
    import numpy as np
    import torch


KERNELS: Mapping[str, str] = {
    "Q8_0": "q8_0",
    "Q4_0": "q4_0",
    "Q5_0": "q4_0",
    "Q2_K": "q2_k",
    "Q3_K": "q3_k",
    "Q4_K": "q4_k",
    "Q5_K": "q4_k",
    "Q6_K": "q6_k",
    "Q4_1": "q4_1",
    "Q5_1": "q4_1",
    "IQ4_NL": "iq4",
    "IQ4_XS": "iq4",
    "MXFP4": "mxfp4",
}
"""Type to module of this package."""


def quantize_into(type_name: str, rows: torch.Tensor, importance: np.ndarray | None, out: np.ndarray) -> int:
    """Fill ``out`` with packed rows; returns the number of places that hold what the type cannot.

    Args:
        type_name: a key of ``KERNELS``.
        rows: ``(n, columns)`` in bfloat16 or float32, whole blocks.
        importance: float32 ``(columns,)``, or None.
        out: uint8 ``(n, row_bytes)``.
    """
    import numpy as np
    import torch

    if rows.ndim != 2 or rows.dtype not in (torch.bfloat16, torch.float32):
        raise UsageProblem(f"rows must be bfloat16 or float32, not {rows.dtype} of shape {tuple(rows.shape)}")
    n, columns = rows.shape
    if out.shape != (n, GGML_TYPES[type_name].row_bytes(columns)) or out.dtype != np.uint8:
        raise UsageProblem(f"({n}, {columns}) values of {type_name} do not pack into {out.dtype} {out.shape}")
    if importance is None:
        importance = np.empty(0, np.float32)
    elif importance.shape != (columns,) or importance.dtype != np.float32:
        raise UsageProblem(
            f"importance of {columns} columns must be float32 ({columns},), "
            f"not {importance.dtype} {importance.shape}"
        )
    encode = import_module(f"qexport.codecs.{KERNELS[type_name]}").encode
    return int(encode(type_name, *halves_and_words(rows), plain(importance), out))


def encode(stored: Blocks, rows: torch.Tensor, known: Known) -> Packed:
    """One stream; bfloat16 and float32 rows are read where they lie."""
    import numpy as np
    import torch

    n, columns = rows.shape
    packed = np.empty((n, GGML_TYPES[stored.name].row_bytes(columns)), np.uint8)
    weights = known.importance if stored.uses_importance else None
    if rows.dtype != torch.float16:
        return Packed((packed,), quantize_into(stored.name, rows, weights, packed))
    bad, step = 0, chunk_rows(rows, 32)
    for start in range(0, n, step):
        part = rows[start : start + step].to(torch.float32)
        bad += quantize_into(stored.name, part, weights, packed[start : start + step])
    return Packed((packed,), bad)


def halves_and_words(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """bfloat16 or float32 rows as kernels of lanes take them (:mod:`qexport.codecs.tiles`)."""
    import numpy as np
    import torch

    halves, words = np.empty((0, rows.shape[1]), np.uint16), np.empty((0, rows.shape[1]), np.uint32)
    if rows.dtype == torch.bfloat16:
        return plain(rows.contiguous().view(torch.uint16).numpy()), words
    return halves, plain(rows.contiguous().view(torch.uint32).numpy())


def plain(array: np.ndarray) -> np.ndarray:
    """The array, or a copy where numba would compile another kernel: unaligned, strided or read-only.

    A file may place a tensor at any byte, and arrays over bytes are read-only.
    """
    import numpy as np

    return np.require(array, requirements=["C", "A", "W"])
