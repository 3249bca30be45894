"""What a tensor is for. Formats ask for roles and never parse names."""

from __future__ import annotations

from enum import StrEnum


class Block(StrEnum):
    """Which part of the model a tensor belongs to."""

    EMBED = "embed"
    TRUNK = "trunk"
    HEAD = "head"
    MTP = "mtp"
    VISION = "vision"


class Role(StrEnum):
    """The job of a tensor inside its block; the same word for every family."""

    TOKEN_EMBD = "token_embd"
    OUTPUT = "output"
    OUTPUT_NORM = "output_norm"

    ATTN_NORM = "attn_norm"
    ATTN_Q = "attn_q"
    ATTN_K = "attn_k"
    ATTN_V = "attn_v"
    ATTN_OUTPUT = "attn_output"
    ATTN_Q_BIAS = "attn_q_bias"
    ATTN_K_BIAS = "attn_k_bias"
    ATTN_V_BIAS = "attn_v_bias"
    ATTN_OUTPUT_BIAS = "attn_output_bias"
    ATTN_Q_NORM = "attn_q_norm"
    ATTN_K_NORM = "attn_k_norm"
    POST_ATTN_NORM = "post_attn_norm"

    LINEAR_QKV = "linear_qkv"
    LINEAR_Z = "linear_z"
    LINEAR_A = "linear_a"
    LINEAR_B = "linear_b"
    LINEAR_OUT = "linear_out"
    LINEAR_CONV = "linear_conv"
    LINEAR_NORM = "linear_norm"
    LINEAR_A_LOG = "linear_a_log"
    LINEAR_DT_BIAS = "linear_dt_bias"

    FFN_NORM = "ffn_norm"
    FFN_GATE = "ffn_gate"
    FFN_UP = "ffn_up"
    FFN_DOWN = "ffn_down"
    FFN_GATE_BIAS = "ffn_gate_bias"
    FFN_UP_BIAS = "ffn_up_bias"
    FFN_DOWN_BIAS = "ffn_down_bias"
    POST_FFN_NORM = "post_ffn_norm"

    ROUTER = "router"
    ROUTER_BIAS = "router_bias"
    EXPERTS_GATE = "experts_gate"
    EXPERTS_UP = "experts_up"
    EXPERTS_DOWN = "experts_down"
    SHARED_EXPERT_GATE = "shared_expert_gate"
    SHARED_EXPERT_UP = "shared_expert_up"
    SHARED_EXPERT_DOWN = "shared_expert_down"
    SHARED_EXPERT_ROUTER = "shared_expert_router"

    MTP_FC = "mtp_fc"
    MTP_EMBED_NORM = "mtp_embed_norm"
    MTP_HIDDEN_NORM = "mtp_hidden_norm"
    MTP_NORM = "mtp_norm"
    MTP_EMBED = "mtp_embed"
    MTP_OUTPUT = "mtp_output"

    # Of a vision tower: weight and bias of a module have one role, and names tell them apart.
    VISION_PATCH = "vision_patch"
    VISION_POSITION = "vision_position"
    VISION_ATTN_NORM = "vision_attn_norm"
    VISION_ATTN_QKV = "vision_attn_qkv"
    VISION_ATTN_Q = "vision_attn_q"
    VISION_ATTN_K = "vision_attn_k"
    VISION_ATTN_V = "vision_attn_v"
    VISION_ATTN_OUTPUT = "vision_attn_output"
    VISION_FFN_NORM = "vision_ffn_norm"
    VISION_FFN_UP = "vision_ffn_up"
    VISION_FFN_DOWN = "vision_ffn_down"
    VISION_OUTPUT_NORM = "vision_output_norm"
    VISION_PROJECTOR_NORM = "vision_projector_norm"
    VISION_PROJECTOR_UP = "vision_projector_up"
    VISION_PROJECTOR_DOWN = "vision_projector_down"
    VISION_PROJECTOR = "vision_projector"
    VISION_DEEPSTACK_NORM = "vision_deepstack_norm"
    VISION_DEEPSTACK_UP = "vision_deepstack_up"
    VISION_DEEPSTACK_DOWN = "vision_deepstack_down"


_VISION = frozenset(role for role in Role if role.value.startswith("vision_"))
NORM_ROLES = frozenset(role for role in Role if role.value.endswith("_norm")) - _VISION
VISION_LINEARS = frozenset(
    role for role in _VISION if not role.value.endswith(("_norm", "_position", "_patch", "projector"))
)
"""Linear layers of a vision tower."""
BIAS_ROLES = frozenset(role for role in Role if role.value.endswith("_bias")) - {
    Role.LINEAR_DT_BIAS,
    Role.ROUTER_BIAS,
}
"""Biases of projections."""
EXPERT_ROLES = frozenset({Role.EXPERTS_GATE, Role.EXPERTS_UP, Role.EXPERTS_DOWN})
