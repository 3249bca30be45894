"""The parts that people speak of: attention, MLP, experts, the head; which of them a tensor belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.families.roles import EXPERT_ROLES, Block, Role

if TYPE_CHECKING:
    from qexport.families.view import ModelTensor


_PREFIXES = {
    "attn_": "attention",
    "linear_": "linear attention",
    "ffn_": "MLP",
    "shared_expert_": "shared expert",
    "router": "router",
}
_OTHERS = {Role.TOKEN_EMBD: "embeddings", Role.OUTPUT: "lm_head"}
PARTS = (
    "embeddings",
    "attention",
    "linear attention",
    "MLP",
    "experts",
    "shared expert",
    "router",
    "lm_head",
    "MTP head",
    "vision tower",
)
"""In the order in which a model computes them."""


def part_of(tensor: ModelTensor) -> str:
    """The part; empty for what is none to speak of: norms, biases, and other small things."""
    if tensor.block is Block.VISION:
        return "vision tower"
    if tensor.block is Block.MTP:
        return "MTP head"
    if len(tensor.shape) < 2 or tensor.role is Role.LINEAR_CONV:
        return ""
    if tensor.role in EXPERT_ROLES:
        return "experts"
    prefix = (part for start, part in _PREFIXES.items() if tensor.role.value.startswith(start))
    return _OTHERS.get(tensor.role) or next(prefix, "")
