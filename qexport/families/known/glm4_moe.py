"""GLM-4.5 and 4.6 (``glm4_moe``): dense layers first, then experts with a shared one; half of each head
turns.

Routers score by a sigmoid, choose with a bias added (``e_score_correction_bias``, float32) and weigh without
it. The head is the layer behind the trunk's: a whole decoder layer, with a projection and norms of its own
beside it, and copies of the embedding and the output in the published checkpoints
(https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/models/glm4_moe_mtp.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qexport.families.family import QKV_BIASES, Arch, Dialect, Family, Template, Tower, Turning, Value
from qexport.families.layers import (
    ATTENTION,
    EXPERTS,
    MLP,
    PLAIN,
    PRE_NORMS,
    QK_NORM,
    QKV_BIAS,
    shared_expert,
)
from qexport.families.roles import Block, Role

if TYPE_CHECKING:
    from qexport.families.hyper import Hyper

# use_qk_norm: the 355B has them, Air has not.
_ATTENTION = (*PRE_NORMS, *ATTENTION, *QKV_BIAS, *(replace(norm, optional=True) for norm in QK_NORM))
_MOE = (
    *_ATTENTION,
    *EXPERTS,
    Template("mlp.gate.e_score_correction_bias", Role.ROUTER_BIAS, "experts"),
    *shared_expert("shared_experts"),
)


def _kinds(config: Mapping[str, Any]) -> tuple[str, ...]:
    dense = config["first_k_dense_replace"]
    return tuple("dense" if i < dense else "full" for i in range(config["num_hidden_layers"]))


def _keys(hyper: Hyper, head: int) -> dict[str, Value]:
    experts = hyper.experts
    assert experts is not None
    return {
        "rope.dimension_count": hyper.rotary,
        "expert_feed_forward_length": experts.inner,
        "expert_shared_count": experts.shared,
        "leading_dense_block_count": hyper.kinds.count("dense"),
        "expert_gating_func": 2,  # llama.cpp's number for a sigmoid
        "expert_weights_scale": experts.scale,
        "expert_weights_norm": experts.normed,
        "nextn_predict_layers": head or None,
    }


def _llama_cpp(hyper: Hyper) -> Iterator[str]:
    experts = hyper.experts
    # Asserted where a file is loaded (llama-model.cpp, load_hparams).
    if experts is not None and experts.groups > 1:
        if experts.groups_used >= experts.groups:
            yield "topk_group is n_group, so that groups choose nothing; llama.cpp aborts: both are to be 1"
        if experts.groups >= experts.count:
            yield f"n_group is {experts.groups}, as many as experts; llama.cpp aborts"


def _mlx_lm(hyper: Hyper) -> Iterator[str]:
    experts = hyper.experts
    # group_expert_select: ``if top_k > 1 and norm_topk_prob``.
    if experts is not None and experts.normed and experts.used == 1:
        yield "num_experts_per_tok is 1, whose weight norm_topk_prob makes one; mlx-lm leaves it as it is"


GLM4_MOE = Family(
    name="glm4_moe",
    causal_arch="Glm4MoeForCausalLM",
    text_model_type="glm4_moe",
    layers={"full": _MOE, "dense": (*_ATTENTION, *MLP)},
    kinds=_kinds,
    head=Tower(
        Block.MTP,
        prefix="model.layers.{behind}.",
        layer_prefix="model.layers.{behind}.",
        layers={"full": _MOE},
        count="num_nextn_predict_layers",
        assumed=1,  # by transformers' config class
        first=(
            Template("eh_proj.weight", Role.MTP_FC, "hidden two_hidden"),
            Template("enorm.weight", Role.MTP_EMBED_NORM, "hidden"),
            Template("hnorm.weight", Role.MTP_HIDDEN_NORM, "hidden"),
            Template("shared_head.norm.weight", Role.MTP_NORM, "hidden"),
            Template("embed_tokens.weight", Role.MTP_EMBED, "vocab hidden", optional=True),
            Template("shared_head.head.weight", Role.MTP_OUTPUT, "vocab hidden", optional=True),
        ),
    ),
    aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    turning=Turning(partial=0.5),
    experts="n_routed_experts",
    scoring="sigmoid",
    arch=Arch(
        "glm4moe",
        names={Role.FFN_NORM: "post_attention_norm.weight"},
        keys=_keys,
        dense_first=True,
        unnormed=True,
        pre="glm4",
        specials={"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"},
        limits=_llama_cpp,
    ),
    dialect=Dialect(
        keeps_float32=frozenset({Role.ROUTER_BIAS}),
        plain=frozenset({Role.ROUTER}),
        biases=QKV_BIASES,
        reads=frozenset(
            {
                "attention_bias",
                "first_k_dense_replace",
                "moe_intermediate_size",
                "n_group",
                "n_routed_experts",
                "n_shared_experts",
                "norm_topk_prob",
                "num_experts_per_tok",
                "routed_scaling_factor",
                "topk_group",
                "use_qk_norm",
            }
        ),
        scaled_rope=False,
        ties=False,
        limits=_mlx_lm,
    ),
    defaults={
        **PLAIN,
        "vocab_size": 151552,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "use_qk_norm": False,
    },
)
