"""How numeric kernels are compiled: numba, without the GIL, cached on disk, strict IEEE arithmetic.

No ``fastmath``: a reordered sum or a fused multiply-add changes bits, and equal bytes are the point.
Importing this module imports numba, so only kernel modules do, and those are imported when first used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit, types
from numba.extending import intrinsic

__all__ = ["bits_of", "compiled", "float_of"]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """``function`` compiled by numba at its first call for each argument type."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no writable place for the cache: a read-only installation without a home
        return njit(**options)(function)  # type: ignore[no-any-return]


def _bitcast(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


def _float_of(_context: Any, _bits: Any) -> Any:
    return types.float32(types.uint32), _bitcast


def _bits_of(_context: Any, _value: Any) -> Any:
    return types.uint32(types.float32), _bitcast


# Reinterpretations inside a register; views of numpy arrays would go through memory.
float_of = intrinsic(_float_of)
bits_of = intrinsic(_bits_of)
