"""Kernels compiled before they are needed, so that the seconds it takes are seen and told.

numba compiles a kernel when it is first called and keeps the result on disk, beside the module or in the
user's cache folder; later processes load it in a fraction of a second. Without this, the first rows would
wait for the compiler and nobody would know why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.codecs.contract import Matrices, StoredType
from qexport.codecs.engines import encode_rows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prepared:
    """One type made ready: how long it took, and whether the compiler ran or a cache had the kernel."""

    type_name: str
    seconds: float
    compiled: bool


def prepare_encoders(
    samples: Iterable[tuple[StoredType, bool, torch.dtype, int]],
    *,
    announce: Callable[[Prepared], None] | None = None,
) -> list[Prepared]:
    """Encode a block of zeros of each kind; what compiles or loads a kernel is told.

    Args:
        samples: stored type, whether there is importance, dtype of the rows, their columns.
        announce: called after each kind for which a kernel was compiled.

    Returns:
        Every kind, announced or not.
    """
    import numpy as np
    import torch

    from qexport.codecs.jit import compilations

    done: dict[tuple[object, ...], Prepared] = {}
    for stored, weighted, dtype, columns in samples:
        kind = (type(stored), stored.name, dtype, weighted)
        if kind in done:
            continue
        start, before = time.perf_counter(), compilations()
        known = Matrices(importance=np.zeros((1, columns), np.float32) if weighted else None)
        encode_rows(stored, torch.zeros((stored.rows_together, columns), dtype=dtype), 0, known)
        done[kind] = Prepared(stored.name, time.perf_counter() - start, compilations() > before)
        if announce and done[kind].compiled:
            announce(done[kind])
    return list(done.values())


def prepare_feedback(
    kinds: Iterable[tuple[StoredType, torch.dtype]], *, announce: Callable[[Prepared], None] | None = None
) -> None:
    """The same for rounding with error feedback: a row of zeros whose columns do not go together."""
    import numpy as np
    import torch

    from qexport.codecs.feedback import prepare, unit_of
    from qexport.codecs.jit import compilations

    for stored, dtype in dict.fromkeys(kinds):
        unit = unit_of(stored)
        if unit is None:
            continue
        start, before = time.perf_counter(), compilations()
        known = Matrices(None, np.ones((1, unit), np.float32), np.ones(1), [prepare(torch.eye(unit), unit)])
        encode_rows(stored, torch.zeros((1, unit), dtype=dtype), 0, known)
        if announce and compilations() > before:
            announce(Prepared(f"{stored.name} feedback", time.perf_counter() - start, compiled=True))
