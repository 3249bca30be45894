"""Qwen3-VL: Qwen3 as the language model, the tower of Qwen3.5, and mergers that carry what some of its blocks
make into the language model's first layers (deepstack).

Positions of text are the same in time, height and width: without a tower the model is Qwen3, in its modules
and in its text-only form. The mixture of experts, published with its experts transposed, is not here.
"""

from __future__ import annotations

from dataclasses import replace

from qexport.families.family import Arch, Dialect, Family, Tower, Turning
from qexport.families.known.qwen3 import ATTENTION_LAYER
from qexport.families.known.qwen3_5 import VISION
from qexport.families.layers import MLP, PLAIN, with_bias
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
        **{key: value for key, value in PLAIN.items() if key != "tie_word_embeddings"},  # the wrapper has it
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 128000,
        "rope_theta": 500000.0,
        "attention_bias": False,
    },
)
