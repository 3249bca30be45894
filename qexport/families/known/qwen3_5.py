"""Qwen3.5 and 3.6, dense and with experts: Gated DeltaNet in three of four layers, gated attention in the
fourth.

Every RMSNorm is zero-centred but the gated one inside linear attention: transformers,
``models/qwen3_5/modeling_qwen3_5.py``, ``Qwen3_5RMSNorm`` and ``Qwen3_5RMSNormGated``. The head, which
transformers has not, is that of
https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/models/qwen3_5_mtp.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qexport.families.family import (
    MOE_KEYS,
    QKV_BIASES,
    Arch,
    Dialect,
    Family,
    Sight,
    Template,
    Tower,
    Turning,
    Value,
)
from qexport.families.layers import (
    ATTENTION,
    ATTENTION_BIAS,
    EXPERTS,
    MLP,
    PLAIN,
    PRE_NORMS,
    QK_NORM,
    shared_expert,
    with_bias,
)
from qexport.families.roles import NORM_ROLES, Block, Role

if TYPE_CHECKING:
    from qexport.families.hyper import Hyper

_CENTRED = NORM_ROLES - {Role.LINEAR_NORM}
_FULL = (*PRE_NORMS, *ATTENTION, *ATTENTION_BIAS, *QK_NORM)
_LINEAR = (
    *PRE_NORMS,
    Template("linear_attn.in_proj_qkv.weight", Role.LINEAR_QKV, "linear_qkv hidden"),
    Template("linear_attn.in_proj_z.weight", Role.LINEAR_Z, "linear_v hidden"),
    Template("linear_attn.in_proj_a.weight", Role.LINEAR_A, "linear_v_heads hidden"),
    Template("linear_attn.in_proj_b.weight", Role.LINEAR_B, "linear_v_heads hidden"),
    Template("linear_attn.out_proj.weight", Role.LINEAR_OUT, "hidden linear_v"),
    Template("linear_attn.conv1d.weight", Role.LINEAR_CONV, "linear_qkv one linear_conv"),
    Template("linear_attn.norm.weight", Role.LINEAR_NORM, "linear_v_head_dim"),
    Template("linear_attn.A_log", Role.LINEAR_A_LOG, "linear_v_heads"),
    Template("linear_attn.dt_bias", Role.LINEAR_DT_BIAS, "linear_v_heads"),
)
_MOE = (
    *EXPERTS,
    *shared_expert("shared_expert"),
    Template("mlp.shared_expert_gate.weight", Role.SHARED_EXPERT_ROUTER, "one hidden"),
)
_DEFAULTS: dict[str, Any] = {
    **PLAIN,
    "vocab_size": 248320,
    "num_attention_heads": 16,
    "max_position_embeddings": 32768,
    "head_dim": 256,
    "attention_bias": False,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
VISION = Sight(
    Tower(
        Block.VISION,
        prefix="visual.",
        layer_prefix="visual.blocks.{n}.",
        layers={
            "full": (
                *with_bias("norm1", Role.VISION_ATTN_NORM, "v_hidden"),
                *with_bias("norm2", Role.VISION_FFN_NORM, "v_hidden"),
                *with_bias("attn.qkv", Role.VISION_ATTN_QKV, "v_qkv v_hidden"),
                *with_bias("attn.proj", Role.VISION_ATTN_OUTPUT, "v_hidden v_hidden"),
                *with_bias("mlp.linear_fc1", Role.VISION_FFN_UP, "v_inner v_hidden"),
                *with_bias("mlp.linear_fc2", Role.VISION_FFN_DOWN, "v_hidden v_inner"),
            )
        },
        count="depth",
        first=(
            *with_bias(
                "patch_embed.proj", Role.VISION_PATCH, "v_hidden v_channels v_temporal v_patch v_patch"
            ),
            Template("pos_embed.weight", Role.VISION_POSITION, "v_positions v_hidden"),
        ),
        last=(
            *with_bias("merger.norm", Role.VISION_OUTPUT_NORM, "v_hidden"),
            *with_bias("merger.linear_fc1", Role.VISION_PROJECTOR_UP, "v_merged v_merged"),
            *with_bias("merger.linear_fc2", Role.VISION_PROJECTOR_DOWN, "v_out v_merged"),
        ),
    ),
    defaults={
        "depth": 27,
        "hidden_size": 1152,
        "hidden_act": "gelu_pytorch_tanh",
        "intermediate_size": 4304,
        "num_heads": 16,
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 3584,
        "num_position_embeddings": 2304,
    },
    sizes={
        "v_hidden": "hidden_size",
        "v_inner": "intermediate_size",
        "v_heads": "num_heads",
        "v_channels": "in_channels",
        "v_patch": "patch_size",
        "v_merge": "spatial_merge_size",
        "v_temporal": "temporal_patch_size",
        "v_out": "out_hidden_size",
        "v_positions": "num_position_embeddings",
    },
    tokens={
        "image_token_id": 248056,
        "video_token_id": 248057,
        "vision_start_token_id": 248053,
        "vision_end_token_id": 248054,
    },
    aliases={"num_attention_heads": "num_heads"},
)


def _kinds(config: Mapping[str, Any]) -> tuple[str, ...]:
    if (named := config.get("layer_types")) is not None:
        return tuple("linear" if kind == "linear_attention" else "full" for kind in named)
    interval = config.get("full_attention_interval") or 4
    return tuple("linear" if (i + 1) % interval else "full" for i in range(config["num_hidden_layers"]))


def _keys(hyper: Hyper, head: int) -> dict[str, Value]:
    linear, experts = hyper.linear, hyper.experts
    assert linear is not None
    return {
        "expert_feed_forward_length": experts.inner if experts else None,
        "expert_shared_feed_forward_length": experts.shared_inner if experts else None,
        "nextn_predict_layers": head or None,
        "ssm.conv_kernel": linear.kernel,
        "ssm.state_size": linear.k_dim,
        "ssm.group_count": linear.k_heads,
        "ssm.time_step_rank": linear.v_heads,
        "ssm.inner_size": linear.v_dim * linear.v_heads,
        # The MTP block is a full-attention one.
        "attention.recurrent_layers": [kind == "linear" for kind in hyper.kinds] + [False] * head,
        "full_attention_interval": hyper.interval or 4,
        "rope.dimension_count": hyper.rotary,
    }


def _head(mlp: tuple[Template, ...]) -> Tower:
    return Tower(
        Block.MTP,
        prefix="mtp.",
        layer_prefix="mtp.layers.{n}.",
        layers={"full": (*_FULL, *mlp)},
        count="mtp_num_hidden_layers",
        beside={"mtp_use_dedicated_embeddings": False},
        first=(
            Template("fc.weight", Role.MTP_FC, "hidden two_hidden"),
            Template("pre_fc_norm_embedding.weight", Role.MTP_EMBED_NORM, "hidden"),
            Template("pre_fc_norm_hidden.weight", Role.MTP_HIDDEN_NORM, "hidden"),
            Template("norm.weight", Role.MTP_NORM, "hidden"),
        ),
    )


def _family(
    name: str, stem: str, mlp: tuple[Template, ...], gates: frozenset[Role], **changes: Any
) -> Family:
    return Family(
        name=name,
        causal_arch=f"{stem}ForCausalLM",
        text_model_type=f"{name}_text",
        layers={"full": (*_FULL, *mlp), "linear": (*_LINEAR, *mlp)},
        kinds=_kinds,
        head=_head(mlp),
        vision=VISION,
        attention=("full_attention", "linear_attention"),
        turning=Turning(
            partial=0.25,
            sections=True,
            published={"rope_theta": 10000000, "partial_rotary_factor": 0.25},
        ),
        arch=Arch(
            name.replace("_", ""),
            names={Role.FFN_NORM: "post_attention_norm.weight"},
            keys=_keys,
            norms_plus_one=_CENTRED,
            tiled_v_heads=True,
            pre="qwen35",
            scaled=True,
            projector="qwen3vl_merger",
        ),
        dialect=Dialect(
            always_wrapped=True,
            prefix="language_model.",
            norms_plus_one=_CENTRED,
            keeps_float32=frozenset({Role.LINEAR_A_LOG}),
            gates=gates,
            biases=QKV_BIASES | {Role.ATTN_OUTPUT_BIAS},
            reads=MOE_KEYS
            | {key for key in _DEFAULTS if key.startswith("linear_")}
            | {"attention_bias", "layer_types", "shared_expert_intermediate_size"},
            drafter="qwen3_5_mtp",
            tower="vision_tower.",
        ),
        gated_q=True,
        multimodal=True,
        wrapper_arch=f"{stem}ForConditionalGeneration",
        wrapper_model_type=name,
        **changes,
    )


QWEN3_5 = _family(
    "qwen3_5",
    "Qwen3_5",
    MLP,
    frozenset(),
    defaults={**_DEFAULTS, "intermediate_size": 12288, "num_key_value_heads": 4},
)
QWEN3_5_MOE = _family(
    "qwen3_5_moe",
    "Qwen3_5Moe",
    _MOE,
    frozenset({Role.ROUTER, Role.SHARED_EXPERT_ROUTER}),
    aliases={"num_local_experts": "num_experts"},
    defaults={
        **_DEFAULTS,
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    },
)
