"""Parts that the layers of many families are made of, as transformers 5 names them
(``models/<family>/modeling_<family>.py``), and the defaults that many config classes share."""

from __future__ import annotations

from typing import Any

from qexport.families.family import Template
from qexport.families.roles import Role

ATTENTION = (
    Template("self_attn.q_proj.weight", Role.ATTN_Q, "q hidden"),
    Template("self_attn.k_proj.weight", Role.ATTN_K, "kv hidden"),
    Template("self_attn.v_proj.weight", Role.ATTN_V, "kv hidden"),
    Template("self_attn.o_proj.weight", Role.ATTN_OUTPUT, "hidden heads_dim"),
)
QKV_BIAS = (
    Template("self_attn.q_proj.bias", Role.ATTN_Q_BIAS, "q", optional=True),
    Template("self_attn.k_proj.bias", Role.ATTN_K_BIAS, "kv", optional=True),
    Template("self_attn.v_proj.bias", Role.ATTN_V_BIAS, "kv", optional=True),
)
ATTENTION_BIAS = (
    *QKV_BIAS,
    Template("self_attn.o_proj.bias", Role.ATTN_OUTPUT_BIAS, "hidden", optional=True),
)
QK_NORM = (
    Template("self_attn.q_norm.weight", Role.ATTN_Q_NORM, "head_dim"),
    Template("self_attn.k_norm.weight", Role.ATTN_K_NORM, "head_dim"),
)
MLP = (
    Template("mlp.gate_proj.weight", Role.FFN_GATE, "inter hidden"),
    Template("mlp.up_proj.weight", Role.FFN_UP, "inter hidden"),
    Template("mlp.down_proj.weight", Role.FFN_DOWN, "hidden inter"),
)
MLP_BIAS = (
    Template("mlp.gate_proj.bias", Role.FFN_GATE_BIAS, "inter", optional=True),
    Template("mlp.up_proj.bias", Role.FFN_UP_BIAS, "inter", optional=True),
    Template("mlp.down_proj.bias", Role.FFN_DOWN_BIAS, "hidden", optional=True),
)
EXPERTS = (
    Template("mlp.gate.weight", Role.ROUTER, "experts hidden"),
    Template("mlp.experts.gate_proj.weight", Role.EXPERTS_GATE, "experts expert_inter hidden"),
    Template("mlp.experts.up_proj.weight", Role.EXPERTS_UP, "experts expert_inter hidden"),
    Template("mlp.experts.down_proj.weight", Role.EXPERTS_DOWN, "experts hidden expert_inter"),
)
PRE_NORMS = (
    Template("input_layernorm.weight", Role.ATTN_NORM, "hidden"),
    Template("post_attention_layernorm.weight", Role.FFN_NORM, "hidden"),
)


def with_bias(module: str, role: Role, shape: str) -> tuple[Template, ...]:
    """Weight and bias of a module of a vision tower."""
    rows = shape.split()[0]
    return Template(f"{module}.weight", role, shape), Template(f"{module}.bias", role, rows)


PLAIN: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def shared_expert(module: str) -> tuple[Template, ...]:
    """The expert that every token goes through, as the family calls it."""
    return (
        Template(f"mlp.{module}.gate_proj.weight", Role.SHARED_EXPERT_GATE, "shared_inter hidden"),
        Template(f"mlp.{module}.up_proj.weight", Role.SHARED_EXPERT_UP, "shared_inter hidden"),
        Template(f"mlp.{module}.down_proj.weight", Role.SHARED_EXPERT_DOWN, "hidden shared_inter"),
    )
