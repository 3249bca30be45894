"""What quantized Hugging Face folders (FP8, NVFP4) have in common: which matrices are linear layers, which of
them runtimes fuse, and the module paths they are published under.

Only roles are looked at. Experts are one stack in the view and one module each in such folders: loaders that
know quantized experts look for ``experts.N.gate_proj``, and none for a quantized stack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.families.names import published_name
from qexport.families.roles import EXPERT_ROLES, Role

if TYPE_CHECKING:
    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor


MLP_ROLES = frozenset(
    {
        Role.FFN_GATE,
        Role.FFN_UP,
        Role.FFN_DOWN,
        Role.EXPERTS_GATE,
        Role.EXPERTS_UP,
        Role.EXPERTS_DOWN,
        Role.SHARED_EXPERT_GATE,
        Role.SHARED_EXPERT_UP,
        Role.SHARED_EXPERT_DOWN,
    }
)
ATTENTION_ROLES = frozenset({Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_OUTPUT})
DELTA_ROLES = frozenset({Role.LINEAR_QKV, Role.LINEAR_Z, Role.LINEAR_OUT})
"""The large projections of Gated DeltaNet; those of its decay and gate, a row per head, stay as they are."""
LINEAR_ROLES = MLP_ROLES | ATTENTION_ROLES | DELTA_ROLES

# vLLM's packed_modules_mapping and SGLang's merged linears: one kernel, so one format and one global scale.
FUSED_ROLES = (
    frozenset({Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V}),
    frozenset({Role.FFN_GATE, Role.FFN_UP}),
    frozenset({Role.SHARED_EXPERT_GATE, Role.SHARED_EXPERT_UP}),
    frozenset({Role.EXPERTS_GATE, Role.EXPERTS_UP}),
    frozenset({Role.LINEAR_QKV, Role.LINEAR_Z}),
)


def fused_roles(role: Role) -> frozenset[Role]:
    """The roles that runtimes fuse with ``role`` in one layer, itself among them."""
    return next((group for group in FUSED_ROLES if role in group), frozenset({role}))


def modules_of(repaired: Repaired, tensor: ModelTensor) -> tuple[str, ...]:
    """The published module path (no ``.weight``) of ``tensor``; for stacked experts one for each expert.

    ``model.language_model.layers.0.mlp.experts.3.gate_proj`` in the wrapper form.
    """
    name = tensor.name.removesuffix(".weight")
    names = [name]
    if tensor.role in EXPERT_ROLES:
        parent, projection = name.rsplit(".", 1)
        names = [f"{parent}.{expert}.{projection}" for expert in range(tensor.shape[0])]
    return tuple(published_name(each, repaired.family, wrapper=repaired.wrapper) for each in names)
