"""What a config means when it does not say: the defaults of transformers' config classes, as data.

``config.json`` leaves out what equals the class's default (a head size, a number of experts; the published
Gemma 3 wrappers leave out nearly all), and every reader but transformers has defaults of its own. A test
compares these with the classes. ``None`` is derived from other keys (:mod:`qexport.families.hyper`); what is
absent here and in the config stays absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PLAIN: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_QWEN: dict[str, Any] = {
    **_PLAIN,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
}
_QWEN35: dict[str, Any] = {
    **_PLAIN,
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

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        **_PLAIN,
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "head_dim": None,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "mistral": {
        **_PLAIN,
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "head_dim": None,
        "sliding_window": 4096,
    },
    "qwen2": {**_QWEN, "intermediate_size": 22016, "max_window_layers": 28},
    "qwen3": {
        **_QWEN,
        "intermediate_size": 22016,
        "max_window_layers": 28,
        "head_dim": 128,
        "attention_bias": False,
    },
    "qwen3_moe": {
        **_QWEN,
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
    "qwen3_5": {
        **_QWEN35,
        "hidden_size": 4096,
        "intermediate_size": 12288,
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
