"""How numeric kernels are compiled: numba, without the GIL, cached on disk, strict IEEE arithmetic.

No ``fastmath``: a reordered sum or a fused multiply-add changes bits, and equal bytes are the point.

A cached kernel contains the functions that it calls, and numba looks only at the date of its own file. So the
cache is also tied to a digest of the sources that kernels are made of (this module, those that import it, and
``lanes``): a kernel is compiled again when any of them changes.
Importing this module imports numba, so only kernel modules do, and those are imported when first used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from qexport.errors import EnvironmentProblem

# numba obeys this file in the current folder, and it may name a cache of compiled code to be run.
if Path(".numba_config.yaml").exists():
    raise EnvironmentProblem(
        "The current folder has a .numba_config.yaml, which decides what code numba runs.",
        hint="Remove it, or start in another folder; what it sets can also be given as NUMBA_* variables.",
    )

from numba import njit, types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

_kernels: list[Any] = []


def compiled(function: F) -> F:
    """``function`` compiled by numba at its first call for each argument type."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        kernel = njit(cache=True, **options)(function)
        _tie_to_sources(kernel)
    except RuntimeError:  # no writable place for the cache: a read-only installation without a home
        kernel = njit(**options)(function)
    _kernels.append(kernel)
    return kernel  # type: ignore[no-any-return]


def compilations() -> int:
    """How often this process has compiled a function of ours, because no cache had it."""
    return sum(sum(kernel.stats.cache_misses.values()) for kernel in _kernels)


def _tie_to_sources(kernel: Any) -> None:
    """Let the version of the kernel's cache file include :func:`_sources_digest`.

    The version is what numba compares before it unpickles anything: an index of other sources may name
    classes that are no longer there.
    """
    # numba has no public way to do this; a version that keeps its own elsewhere goes by the file's date.
    file: Any = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    if hasattr(file, "_version"):
        file._version = (file._version, _sources_digest())


@cache
def _sources_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_bytes()
        if b"qexport.codecs.jit import" in source or path.name in ("jit.py", "lanes.py"):
            digest.update(source)
    return digest.hexdigest()


def _bitcast(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


def _float_of(_context: Any, _bits: Any) -> Any:
    return types.float32(types.uint32), _bitcast


def _bits_of(_context: Any, _value: Any) -> Any:
    return types.uint32(types.float32), _bitcast


# Reinterpretations inside a register; views of numpy arrays would go through memory.
float_of = intrinsic(_float_of)
bits_of = intrinsic(_bits_of)
