"""Kernels compiled before they are needed, so that the seconds it takes are seen and told.

numba compiles a kernel when it is first called and keeps the result on disk, beside the module or in the
user's cache folder; later processes load it in a fraction of a second. Without this, the first rows would
wait for the compiler and nobody would know why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Warmable(Protocol):
    """An encoder of any format (``qexport.formats.plan.Encoder``)."""

    @property
    def type_name(self) -> str: ...

    @property
    def rows_together(self) -> int: ...

    def encode(self, rows: torch.Tensor, first_row: int) -> Any: ...


@dataclass(frozen=True)
class Prepared:
    """One type made ready: how long it took, and whether the compiler ran or a cache had the kernel."""

    type_name: str
    seconds: float
    compiled: bool


def prepare_encoders(
    samples: Iterable[tuple[Warmable, torch.dtype, int]],
    *,
    announce: Callable[[Prepared], None] | None = None,
) -> list[Prepared]:
    """Let encoders encode a block of zeros, one of each kind; those that compile or load a kernel are told.

    A kind is a class, a type name, a dtype, and whether there is importance.

    Args:
        samples: encoder, dtype of the rows it will get, columns of those rows. One with a survey must be
            able to encode zeros before it has seen a row.
        announce: called after each kind for which a kernel was compiled.

    Returns:
        Every kind, announced or not.
    """
    import torch

    from qexport.codecs.jit import compilations

    done: dict[tuple[object, ...], Prepared] = {}
    for encoder, dtype, columns in samples:
        weighted = getattr(encoder, "importance", None) is not None
        kind = (type(encoder), encoder.type_name, dtype, weighted)
        if kind in done:
            continue
        start, before = time.perf_counter(), compilations()
        encoder.encode(torch.zeros((encoder.rows_together, columns), dtype=dtype), 0)
        done[kind] = Prepared(encoder.type_name, time.perf_counter() - start, compilations() > before)
        if announce and done[kind].compiled:
            announce(done[kind])
    return list(done.values())
