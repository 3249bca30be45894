"""Qwen2 (biases at q, k and v), Qwen3 (norms of q and k instead) and Qwen3's mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qexport.families.family import MOE_KEYS, QKV_BIASES, Arch, Dialect, Family
from qexport.families.layers import (
    ATTENTION,
    ATTENTION_BIAS,
    EXPERTS,
    MLP,
    PLAIN,
    PRE_NORMS,
    QK_NORM,
    QKV_BIAS,
)
from qexport.families.roles import Role

if TYPE_CHECKING:
    from qexport.families.hyper import Hyper

_DEFAULTS: dict[str, Any] = {
    **PLAIN,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
}
_DENSE = {**_DEFAULTS, "intermediate_size": 22016, "max_window_layers": 28}
ATTENTION_LAYER = (*PRE_NORMS, *ATTENTION, *ATTENTION_BIAS, *QK_NORM)
MOE_READS = MOE_KEYS | {"decoder_sparse_step", "mlp_only_layers", "norm_topk_prob"}
_WORDS = ("full_attention", "sliding_attention")


def moe_kinds(config: Mapping[str, Any]) -> tuple[str, ...]:
    """``dense`` where a layer has no experts."""
    dense, step = config["mlp_only_layers"], config["decoder_sparse_step"]
    count = config["num_hidden_layers"]
    return tuple("dense" if i in dense or (i + 1) % step else "full" for i in range(count))


def moe_keys(hyper: Hyper, _: int) -> dict[str, int | None]:
    """Those of llama.cpp that mixtures have beyond the common ones."""
    return {"expert_feed_forward_length": hyper.experts.inner if hyper.experts else None}


QWEN2 = Family(
    name="qwen2",
    causal_arch="Qwen2ForCausalLM",
    text_model_type="qwen2",
    layers={"full": (*PRE_NORMS, *ATTENTION, *MLP, *QKV_BIAS)},
    attention=_WORDS,
    arch=Arch("qwen2", vocabulary="model"),
    dialect=Dialect(biases=QKV_BIASES),
    null_kv_heads=True,
    no_head_dim=True,
    defaults=_DENSE,
)
QWEN3 = Family(
    name="qwen3",
    causal_arch="Qwen3ForCausalLM",
    text_model_type="qwen3",
    layers={"full": (*ATTENTION_LAYER, *MLP)},
    attention=_WORDS,
    arch=Arch("qwen3", vocabulary="model", scaled=True),
    dialect=Dialect(),
    null_kv_heads=True,
    defaults={**_DENSE, "head_dim": 128, "attention_bias": False},
)
QWEN3_MOE = Family(
    name="qwen3_moe",
    causal_arch="Qwen3MoeForCausalLM",
    text_model_type="qwen3_moe",
    layers={"full": (*ATTENTION_LAYER, *EXPERTS), "dense": (*ATTENTION_LAYER, *MLP)},
    kinds=moe_kinds,
    aliases={"num_local_experts": "num_experts"},
    arch=Arch("qwen3moe", keys=moe_keys, scaled=True),
    dialect=Dialect(
        gates=frozenset({Role.ROUTER}),
        reads=MOE_READS,
    ),
    defaults={
        **_DEFAULTS,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "attention_bias": False,
    },
)
