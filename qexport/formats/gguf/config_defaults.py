"""What a config means when it does not say: transformers' defaults as data.

``config.json`` leaves out what equals the config class's default (a head size, a RoPE base, a number of
experts), and llama.cpp's converter reads it through ``AutoConfig``, which fills them in. These tables hold
the defaults that reach GGUF metadata, so that writing a GGUF needs no transformers; a test compares them
with the config classes. Keys that are absent here and in the config stay absent.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from qexport.families.view import ModelView

__all__ = ["DEFAULTS", "resolved_config"]

_QWEN35: dict[str, Any] = {
    "vocab_size": 248320,
    "num_attention_heads": 16,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "partial_rotary_factor": 0.25,
}

# Per text model type. `None` for num_key_value_heads and head_dim means: derived below, as the classes do.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "head_dim": None,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "head_dim": None,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
    },
    "qwen3": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "head_dim": 128,
    },
    "qwen3_moe": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    "gemma3": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "head_dim": 256,
        "sliding_window": 4096,
    },
    "qwen3_5": {
        **_QWEN35,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_key_value_heads": 4,
    },
    "qwen3_5_moe": {
        **_QWEN35,
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    },
}

# Classes whose __post_init__ replaces a missing (or null) number of key-value heads by that of query heads.
_KV_HEADS_FOLLOW = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_HEAD_DIM_FOLLOWS = frozenset({"llama", "mistral"})
_HYBRID = frozenset({"qwen3_5", "qwen3_5_moe"})


def resolved_config(view: ModelView) -> dict[str, Any]:
    """The text config as ``AutoConfig(...).to_dict()`` would give it, for the keys that matter here."""
    family = view.family
    config: dict[str, Any] = {**view.config, **view.text}
    # The class knows one name for the number of experts (attribute_map), configs use either.
    if family == "qwen3_moe" and "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    for key, value in DEFAULTS[family].items():
        config.setdefault(key, value)
    if family in _HEAD_DIM_FOLLOWS and config["head_dim"] is None:
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    if family in _KV_HEADS_FOLLOW and config["num_key_value_heads"] is None:
        config["num_key_value_heads"] = config["num_attention_heads"]
    if family in _HYBRID and config.get("layer_types") is None:
        interval = config.get("full_attention_interval") or 4
        config["layer_types"] = [
            "full_attention" if (layer + 1) % interval == 0 else "linear_attention"
            for layer in range(config["num_hidden_layers"])
        ]
    config["rope_parameters"] = _gemma3_rope(config) if family == "gemma3" else _rope(config)
    return config


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """One set of RoPE parameters, from the old spelling (``rope_scaling``, ``rope_theta``) or the new."""
    rope: dict[str, Any] = copy.deepcopy(config.get("rope_scaling") or config.get("rope_parameters") or {})
    theta = config.get("rope_theta")
    sections = [rope[kind] for kind in ("full_attention", "sliding_attention") if rope.get(kind)] or [rope]
    for section in sections:
        section.setdefault("rope_theta", 10000.0 if theta is None else theta)
        if (partial := config.get("partial_rotary_factor")) is not None:
            section.setdefault("partial_rotary_factor", partial)
        section.setdefault("rope_type", section.get("type", "default"))
        # A scaled RoPE is relative to the length it was trained at.
        if section["rope_type"] in ("llama3", "yarn", "longrope"):
            original = config.get("original_max_position_embeddings", config["max_position_embeddings"])
            section.setdefault("original_max_position_embeddings", original)
    return rope


def _gemma3_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 3 turns global and sliding layers by different bases; only the global ones are scaled."""
    rope: dict[str, Any] = copy.deepcopy(config.get("rope_parameters") or {})
    full = rope.get("full_attention") or {"rope_type": "default"}
    sliding = rope.get("sliding_attention") or {"rope_type": "default"}
    full.update(config.get("rope_scaling") or {})
    full.setdefault("rope_theta", config.get("rope_theta", 1_000_000.0))
    sliding.setdefault("rope_theta", config.get("rope_local_base_freq", 10_000.0))
    for section in (full, sliding):
        section.setdefault("rope_type", section.get("type", "default"))
        if section["rope_type"] in ("llama3", "yarn", "longrope"):
            section.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return {**rope, "full_attention": full, "sliding_attention": sliding}
