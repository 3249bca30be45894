"""What a model can be and mlx-lm cannot run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qexport.formats.limits import Limit, Reader

if TYPE_CHECKING:
    from qexport.families.view import ModelView


def _own(view: ModelView) -> Iterator[Limit]:
    hyper, dialect = view.hyper, view.hyper.family.dialect
    if dialect is not None:
        yield from map(Limit, dialect.limits(hyper))
        if hyper.tied and not dialect.ties:
            yield Limit(f"embedding and output are one matrix, and mlx-lm's {view.family} has two")
    if hyper.rope.kind != "default" and not (dialect and dialect.scaled_rope):
        yield Limit(f"mlx-lm's {view.family} does not scale RoPE ({hyper.rope.kind!r})")


MLX_LM = Reader(
    name="mlx-lm",
    format="MLX",
    ropes=frozenset({"default", "linear", "yarn", "llama3", "dynamic", "mrope", "longrope"}),
    windows=lambda _: False,
    own=_own,
)
