"""Qwen3-VL, dense and with experts: Qwen3 as the language model, the tower of Qwen3.5, and mergers that carry
what some of its blocks make into the language model's first layers (deepstack).

Positions of text are the same in time, height and width: without a tower the model is Qwen3, in its modules
and in its text-only form. The weights of chosen experts are always made to sum to one here, and the published
experts are transposed.
"""

from __future__ import annotations

from dataclasses import replace

from qexport.families.family import Arch, Dialect, Family, Tower, Turning
from qexport.families.known.qwen3 import ATTENTION_LAYER, MOE_READS, moe_keys, moe_kinds
from qexport.families.known.qwen3_5 import VISION
from qexport.families.layers import EXPERTS, MLP, PLAIN, with_bias
from qexport.families.roles import Block, Role

_DEEPSTACK = Tower(
    Block.VISION,
    prefix="visual.",
    layer_prefix="visual.deepstack_merger_list.{n}.",
    layers={
        "full": (
            *with_bias("norm", Role.VISION_DEEPSTACK_NORM, "v_merged"),
            *with_bias("linear_fc1", Role.VISION_DEEPSTACK_UP, "v_merged v_merged"),
            *with_bias("linear_fc2", Role.VISION_DEEPSTACK_DOWN, "v_out v_merged"),
        )
    },
    count="deepstack_visual_indexes",
)
# The wrapper says whether the output is the embedding.
_DEFAULTS = {key: value for key, value in PLAIN.items() if key != "tie_word_embeddings"}
QWEN3_VL = Family(
    name="qwen3_vl",
    causal_arch="Qwen3ForCausalLM",
    text_model_type="qwen3_vl_text",
    alone_model_type="qwen3",
    layers={"full": (*ATTENTION_LAYER, *MLP)},
    vision=replace(
        VISION,
        defaults={**VISION.defaults, "deepstack_visual_indexes": [8, 16, 24]},
        tokens={
            "image_token_id": 151655,
            "video_token_id": 151656,
            "vision_start_token_id": 151652,
            "vision_end_token_id": 151653,
        },
        deepstack=_DEEPSTACK,
    ),
    turning=Turning(sections=True, shares=(24, 20, 20)),
    arch=Arch("qwen3vl", vocabulary="model", projector="qwen3vl_merger"),
    dialect=Dialect(wrapper_prefix="language_model.", tower="vision_tower."),
    null_kv_heads=True,
    wrapper_arch="Qwen3VLForConditionalGeneration",
    wrapper_model_type="qwen3_vl",
    defaults={
        **_DEFAULTS,
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 128000,
        "rope_theta": 500000.0,
        "attention_bias": False,
    },
)
QWEN3_VL_MOE = replace(
    QWEN3_VL,
    name="qwen3_vl_moe",
    causal_arch="Qwen3MoeForCausalLM",
    text_model_type="qwen3_vl_moe_text",
    alone_model_type="qwen3_moe",
    layers={"full": (*ATTENTION_LAYER, *EXPERTS), "dense": (*ATTENTION_LAYER, *MLP)},
    kinds=moe_kinds,
    aliases={"num_local_experts": "num_experts"},
    turned_experts=True,
    arch=Arch("qwen3vlmoe", keys=moe_keys, projector="qwen3vl_merger"),
    dialect=Dialect(
        wrapper_prefix="language_model.",
        gates=frozenset({Role.ROUTER}),
        gates_seeing=frozenset(),  # its model has the rule where mlx_vlm convert does not look for it
        reads=MOE_READS,
        tower="vision_tower.",
    ),
    wrapper_arch="Qwen3VLMoeForConditionalGeneration",
    wrapper_model_type="qwen3_vl_moe",
    defaults={
        **QWEN3_VL.defaults,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": None,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
)
