"""Gemma 3: four norms a layer, each zero-centred; five layers with a window and a base of their own, then one
without.

Norms stay zero-centred in MLX: mlx-lm's RMSNorm adds the 1 when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qexport.families.family import Arch, Dialect, Family, Sight, Template, Tower, Turning, Value
from qexport.families.layers import ATTENTION, ATTENTION_BIAS, MLP, QK_NORM, with_bias
from qexport.families.roles import NORM_ROLES, Block, Role

if TYPE_CHECKING:
    from qexport.families.hyper import Hyper

_EVERY = 6  # llama.cpp's own pattern: five layers with a window, one without
_NORMS = (
    Template("input_layernorm.weight", Role.ATTN_NORM, "hidden"),
    Template("post_attention_layernorm.weight", Role.POST_ATTN_NORM, "hidden"),
    Template("pre_feedforward_layernorm.weight", Role.FFN_NORM, "hidden"),
    Template("post_feedforward_layernorm.weight", Role.POST_FFN_NORM, "hidden"),
)
_SIGLIP = "vision_tower.vision_model."
_VISION = Sight(
    Tower(
        Block.VISION,
        prefix="",
        layer_prefix=_SIGLIP + "encoder.layers.{n}.",
        layers={
            "full": (
                *with_bias("layer_norm1", Role.VISION_ATTN_NORM, "v_hidden"),
                *with_bias("layer_norm2", Role.VISION_FFN_NORM, "v_hidden"),
                *with_bias("self_attn.q_proj", Role.VISION_ATTN_Q, "v_hidden v_hidden"),
                *with_bias("self_attn.k_proj", Role.VISION_ATTN_K, "v_hidden v_hidden"),
                *with_bias("self_attn.v_proj", Role.VISION_ATTN_V, "v_hidden v_hidden"),
                *with_bias("self_attn.out_proj", Role.VISION_ATTN_OUTPUT, "v_hidden v_hidden"),
                *with_bias("mlp.fc1", Role.VISION_FFN_UP, "v_inner v_hidden"),
                *with_bias("mlp.fc2", Role.VISION_FFN_DOWN, "v_hidden v_inner"),
            )
        },
        count="num_hidden_layers",
        first=(
            *with_bias(
                f"{_SIGLIP}embeddings.patch_embedding",
                Role.VISION_PATCH,
                "v_hidden v_channels v_patch v_patch",
            ),
            Template(
                f"{_SIGLIP}embeddings.position_embedding.weight", Role.VISION_POSITION, "v_positions v_hidden"
            ),
        ),
        last=(
            *with_bias(f"{_SIGLIP}post_layernorm", Role.VISION_OUTPUT_NORM, "v_hidden"),
            Template(
                "multi_modal_projector.mm_input_projection_weight", Role.VISION_PROJECTOR, "v_hidden hidden"
            ),
            Template("multi_modal_projector.mm_soft_emb_norm.weight", Role.VISION_PROJECTOR_NORM, "v_hidden"),
        ),
    ),
    defaults={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    sizes={
        "v_hidden": "hidden_size",
        "v_inner": "intermediate_size",
        "v_heads": "num_attention_heads",
        "v_channels": "num_channels",
        "v_image": "image_size",
        "v_patch": "patch_size",
    },
    tokens={"image_token_index": 262144, "boi_token_index": 255999, "eoi_token_index": 256000},
    aliases={
        "image_token_id": "image_token_index",
        "boi_token_id": "boi_token_index",
        "eoi_token_id": "eoi_token_index",
    },
)


def _keys(hyper: Hyper, _: int) -> dict[str, Value]:
    slides = [window is not None for window in hyper.windows]
    usual = slides == [bool((layer + 1) % _EVERY) for layer in range(hyper.layers)]
    return {
        "final_logit_softcapping": None if hyper.softcap is None else float(hyper.softcap),
        "attention.sliding_window": next((w for w in hyper.windows if w is not None), None),
        "attention.sliding_window_pattern": slides if any(slides) and not usual else None,
    }


def _limits(reader: str, hyper: Hyper) -> Iterator[str]:
    if hyper.attention_softcap is not None:
        yield f"attn_logit_softcapping is {hyper.attention_softcap:g}, and {reader} has none"
    if hyper.text.get("use_bidirectional_attention"):
        yield f"use_bidirectional_attention is true, and {reader} has causal attention alone"


def _llama_cpp(hyper: Hyper) -> Iterator[str]:
    yield from _limits("llama.cpp", hyper)
    # llama.cpp tells the 27B, alone in its scale, by its number of layers.
    own = hyper.hidden // hyper.heads if hyper.layers == 62 else hyper.head_dim
    if hyper.query_scale is not None and hyper.query_scale != own:
        yield f"query_pre_attn_scalar is {hyper.query_scale:g}, and llama.cpp takes {own}"


def _mlx_lm(hyper: Hyper) -> Iterator[str]:
    yield from _limits("mlx-lm", hyper)
    if hyper.softcap is not None:
        yield f"final_logit_softcapping is {hyper.softcap:g}, and mlx-lm has none"


GEMMA3 = Family(
    name="gemma3",
    causal_arch="Gemma3ForCausalLM",
    text_model_type="gemma3_text",
    layers={"full": (*_NORMS, *ATTENTION, *ATTENTION_BIAS, *QK_NORM, *MLP)},
    vision=_VISION,
    attention=("full_attention", "sliding_attention"),
    turning=Turning(local=True),
    arch=Arch(
        "gemma3",
        keys=_keys,
        norms_plus_one=NORM_ROLES,
        windows=True,
        vocabulary="gemma",
        projector="gemma3",
        limits=_llama_cpp,
    ),
    dialect=Dialect(
        wrapper_prefix="language_model.",
        reads=frozenset(
            {"query_pre_attn_scalar", "rope_local_base_freq", "sliding_window", "sliding_window_pattern"}
        ),
        tower="",
        output_twice=True,
        limits=_mlx_lm,
    ),
    heads_divide=True,
    tokenizer_class="GemmaTokenizer",
    wrapper_arch="Gemma3ForConditionalGeneration",
    wrapper_model_type="gemma3",
    wrapper_prefix="language_model.model.",
    wrapper_head="language_model.",
    vision_prefix="",
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "use_bidirectional_attention": False,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
)
