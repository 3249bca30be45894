"""ggml's own encoders, called in the shared object that the xllamacpp wheel carries.

llama-quantize ends in one C function per type; ``ggml_quantize_chunk`` is their door. Calling it writes the
very bytes that llama-quantize writes: it makes the types that no kernel of ours makes (:data:`ONLY_GGML`),
and is the oracle of the others. The tables of those types are built when one is first used, once a process:
0.3 s (IQ3) to 10 s (IQ1). ctypes releases the GIL during the call, so threads run in parallel.

The library is found without importing xllamacpp (its import starts a server engine's worth of code). Only
the C symbols are used: https://github.com/ggml-org/llama.cpp/blob/master/ggml/include/ggml.h

A wrong argument makes ggml abort the process, so every shape and dtype is checked here first, and so are the
values: some of those types abort at numbers whose squares overflow, and without importance.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.codecs.contract import Blocks, Known, Packed, chunk_rows
from qexport.codecs.ggml_types import GgmlType, ggml_type
from qexport.errors import EnvironmentProblem, UsageProblem
from qexport.optional import command_for

if TYPE_CHECKING:
    import numpy as np
    import torch


ONLY_GGML = frozenset(("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"))
"""The types that are made and read through ggml."""
ABORTS_WITHOUT_IMPORTANCE = frozenset(("IQ2_XS", "IQ2_XXS", "IQ1_S"))
_LARGEST = 65504.0  # of those types: their scales are float16, and squares of squares stay within float32
_PATTERNS = ("xllamacpp*.so", "xllamacpp*.dylib", "xllamacpp*.pyd")


def find_library() -> Path:
    """The shared object inside the installed xllamacpp package. Raises EnvironmentProblem."""
    spec = importlib.util.find_spec("xllamacpp")
    for folder in (spec and spec.submodule_search_locations) or ():
        for pattern in _PATTERNS:
            for path in sorted(Path(folder).glob(pattern)):
                return path
    raise EnvironmentProblem(
        "ggml's encoders come with xllamacpp, which is not installed", hint=command_for("xllamacpp")
    )


def is_available() -> bool:
    """Whether ggml's encoders can be used here."""
    try:
        _library()
    except EnvironmentProblem:
        return False
    return True


@cache
def _library() -> ctypes.CDLL:
    path = find_library()
    try:
        library = ctypes.CDLL(str(path))
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        library.ggml_quantize_init.argtypes = [ctypes.c_int]
        library.ggml_quantize_init.restype = None
        # type, source, target, first value, rows, values per row, importance
        library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
        library.ggml_validate_row_data.restype = ctypes.c_bool
    except (OSError, AttributeError) as error:
        raise EnvironmentProblem(
            f"{path.name} does not offer ggml's encoders here: {error}",
            hint=f"{command_for('xllamacpp')}, on Linux or macOS",
        ) from error
    return library


_init_lock = threading.Lock()
_initialised: set[int] = set()


def _ready(kind: GgmlType) -> ctypes.CDLL:
    """The library with the tables of one type built; building them twice at once is not safe in ggml."""
    with _init_lock:
        library = _library()
        if kind.id not in _initialised:
            library.ggml_quantize_init(kind.id)
            _initialised.add(kind.id)
    return library


def quantize_rows(type_name: str, rows: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Rows packed by ggml's reference encoder.

    Args:
        type_name: a name of :data:`~qexport.codecs.ggml_types.GGML_TYPES`.
        rows: float32 ``(n, columns)``, C-contiguous.
        importance: float32 ``(columns,)``: mean squared input of each column, the weight of its error.

    Returns:
        uint8 ``(n, row_bytes)``.
    """
    import numpy as np

    kind = ggml_type(type_name)
    if rows.ndim != 2 or rows.dtype != np.float32 or not rows.flags.c_contiguous:
        raise UsageProblem(f"ggml reads C-contiguous float32 rows, not {rows.dtype} of shape {rows.shape}")
    n, columns = rows.shape
    out = np.empty((n, kind.row_bytes(columns)), np.uint8)
    weights = None
    if importance is not None:
        if importance.shape != (columns,) or importance.dtype != np.float32:
            raise UsageProblem(
                f"importance of {columns} columns must be float32 ({columns},), "
                f"not {importance.dtype} {importance.shape}"
            )
        importance = np.ascontiguousarray(importance)
        weights = importance.ctypes.data
    elif kind.name in ABORTS_WITHOUT_IMPORTANCE:
        raise UsageProblem(f"{kind.name} needs importance", hint="Give --imatrix, or choose a larger type.")
    if n:
        library = _ready(kind)
        library.ggml_quantize_chunk(kind.id, rows.ctypes.data, out.ctypes.data, 0, n, columns, weights)
    return out


def dequantize_into(type_name: str, packed: np.ndarray, out: np.ndarray) -> None:
    """Fill float32 ``out`` with the numbers of ``packed``, whole blocks, both C-contiguous."""
    decode = getattr(_library(), f"dequantize_row_{type_name.lower()}")
    decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    decode.restype = None
    decode(packed.ctypes.data, out.ctypes.data, out.size)


def rows_are_valid(type_name: str, packed: np.ndarray) -> bool:
    """Whether every scale of ``packed`` (C-contiguous) is finite: llama-quantize's check of each chunk."""
    return bool(_library().ggml_validate_row_data(ggml_type(type_name).id, packed.ctypes.data, packed.nbytes))


def encode(stored: Blocks, rows: torch.Tensor, known: Known) -> Packed:
    """One stream; rows are widened a megabyte at a time."""
    import numpy as np
    import torch

    n, columns = rows.shape
    packed = np.empty((n, ggml_type(stored.name).row_bytes(columns)), np.uint8)
    step = chunk_rows(rows)
    for start in range(0, n, step):
        wide = rows[start : start + step].to(torch.float32).contiguous().numpy()
        # A search for the best scale passes over NaN in silence.
        if not np.isfinite(wide).all() or (stored.name in ONLY_GGML and np.abs(wide).max() > _LARGEST):
            return Packed((packed,), 1)
        packed[start : start + step] = quantize_rows(stored.name, wide, known.importance)
    return Packed((packed,), int(n > 0 and not rows_are_valid(stored.name, packed)))
