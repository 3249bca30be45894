"""What a model can be and llama.cpp cannot run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qexport.families.roles import BIAS_ROLES
from qexport.formats.limits import Limit, Reader

if TYPE_CHECKING:
    from qexport.families.view import ModelView


def _own(view: ModelView) -> Iterator[Limit]:
    hyper, arch, family = view.hyper, view.hyper.family.arch, view.family
    linear, experts = hyper.linear, hyper.experts
    if arch is not None:
        alien = [tensor.name for tensor in view if tensor.role in BIAS_ROLES - arch.biases]
        if alien:
            yield Limit(f"llama.cpp's {family} reads no {alien[0]} ({len(alien)} such biases)")
        yield from map(Limit, arch.limits(hyper))
    if linear is not None and linear.k_dim != linear.v_dim:
        yield Limit(
            f"linear_key_head_dim is {linear.k_dim} and linear_value_head_dim {linear.v_dim}: llama.cpp has "
            "one size for both"
        )
    if experts is not None and not experts.normed and not (arch and arch.unnormed):
        yield Limit("norm_topk_prob is false, and llama.cpp always makes the experts' weights sum to one")
    if hyper.rope.kind == "llama3" and not (arch and arch.factors):
        yield Limit(f"llama.cpp's {family} reads no frequency factors, which RoPE of type 'llama3' needs")


LLAMA_CPP = Reader(
    name="llama.cpp",
    format="GGUF",
    ropes=frozenset({"default", "linear", "yarn", "llama3", "dynamic", "mrope"}),
    windows=lambda family: family.arch is not None and family.arch.windows,
    own=_own,
)
