"""Hyper-parameters: ``{arch}.*`` key-values from a model's text config.

One list of (key, type, config names) serves every family, as llama.cpp's loader reads one list for every
architecture (``llama_model_base::load_hparams``,
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp); what a family has beyond it is a
function in a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qexport.errors import InputError
from qexport.families.view import ModelView
from qexport.formats.gguf.arch import arch_of
from qexport.formats.gguf.config_defaults import resolved_config
from qexport.formats.gguf.kv import KV, ValueType, array, boolean, f32, u32
from qexport.formats.gguf.rope import rope_metadata

__all__ = ["hyper_parameters"]

# Qwen3.5 always turns in three interleaved sections; the loader requires the key even where a config is
# silent.
_QWEN35_SECTIONS = (11, 11, 10, 0)

_BEFORE_ROPE: tuple[tuple[str, Callable[[Any], KV], tuple[str, ...]], ...] = (
    ("context_length", u32, ("max_position_embeddings",)),
    ("embedding_length", u32, ("hidden_size",)),
    ("feed_forward_length", u32, ("intermediate_size",)),
    ("attention.head_count", u32, ("num_attention_heads",)),
    ("attention.head_count_kv", u32, ("num_key_value_heads",)),
)
_AFTER_ROPE: tuple[tuple[str, Callable[[Any], KV], tuple[str, ...]], ...] = (
    ("attention.layer_norm_rms_epsilon", f32, ("rms_norm_eps",)),
    ("expert_count", u32, ("num_local_experts", "num_experts")),
    ("expert_used_count", u32, ("num_experts_per_tok",)),
    ("attention.key_length", u32, ("head_dim",)),
    ("attention.value_length", u32, ("head_dim",)),
)


def hyper_parameters(view: ModelView, file_type: int, notes: list[str]) -> dict[str, KV]:
    """Every ``{arch}.*`` key and ``general.file_type``, in the converter's order."""
    arch = arch_of(view).name
    config = resolved_config(view)
    result = {f"{arch}.block_count": u32(view.layers + view.mtp_layers)}
    _from_table(result, arch, config, _BEFORE_ROPE)
    if config.get("is_causal") is False:
        result[f"{arch}.attention.causal"] = boolean(False)
    result.update(rope_metadata(arch, config["rope_parameters"], notes))
    _from_table(result, arch, config, _AFTER_ROPE)
    result["general.file_type"] = u32(file_type)
    if extra := _EXTRAS.get(view.family):
        extra(result, arch, config, view)
    return result


def _from_table(
    result: dict[str, KV],
    arch: str,
    config: Mapping[str, Any],
    table: tuple[tuple[str, Callable[[Any], KV], tuple[str, ...]], ...],
) -> None:
    for key, make, names in table:
        value = next((config[name] for name in names if name in config), None)
        if value is not None:
            result[f"{arch}.{key}"] = make(value)


def _llama(result: dict[str, KV], arch: str, config: Mapping[str, Any], view: ModelView) -> None:
    result[f"{arch}.vocab_size"] = u32(config["vocab_size"])
    result[f"{arch}.rope.dimension_count"] = u32(config["head_dim"])


def _moe(result: dict[str, KV], arch: str, config: Mapping[str, Any], view: ModelView) -> None:
    if (length := config.get("moe_intermediate_size")) is not None:
        result[f"{arch}.expert_feed_forward_length"] = u32(length)
    if (length := config.get("shared_expert_intermediate_size")) is not None:
        result[f"{arch}.expert_shared_feed_forward_length"] = u32(length)


def _gemma3(result: dict[str, KV], arch: str, config: Mapping[str, Any], view: ModelView) -> None:
    if cap := config.get("final_logit_softcapping"):
        result[f"{arch}.final_logit_softcapping"] = f32(cap)
    # The pattern itself (every sixth layer is global) is built into llama.cpp's gemma3.
    if config.get("sliding_window_pattern") != 1:
        result[f"{arch}.attention.sliding_window"] = u32(config["sliding_window"])


def _qwen35(result: dict[str, KV], arch: str, config: Mapping[str, Any], view: ModelView) -> None:
    _moe(result, arch, config, view)
    if view.mtp_layers:
        result[f"{arch}.nextn_predict_layers"] = u32(view.mtp_layers)
    result[f"{arch}.ssm.conv_kernel"] = u32(config["linear_conv_kernel_dim"])
    result[f"{arch}.ssm.state_size"] = u32(config["linear_key_head_dim"])
    result[f"{arch}.ssm.group_count"] = u32(config["linear_num_key_heads"])
    result[f"{arch}.ssm.time_step_rank"] = u32(config["linear_num_value_heads"])
    result[f"{arch}.ssm.inner_size"] = u32(config["linear_value_head_dim"] * config["linear_num_value_heads"])
    kinds = config["layer_types"]
    if len(kinds) != view.layers:
        raise InputError(
            f"{view.label}: layer_types names {len(kinds)} layers, the model has {view.layers}",
            hint="Repair config.json: layer_types needs one entry per trunk layer.",
        )
    # The MTP block is a full-attention one.
    recurrent = [kind == "linear_attention" for kind in kinds] + [False] * view.mtp_layers
    result[f"{arch}.attention.recurrent_layers"] = array(ValueType.BOOL, recurrent)
    result[f"{arch}.full_attention_interval"] = u32(config.get("full_attention_interval") or 4)
    rotary = config["rope_parameters"].get("partial_rotary_factor", 0.25)
    result[f"{arch}.rope.dimension_count"] = u32(int(config["head_dim"] * rotary))
    result.setdefault(f"{arch}.rope.dimension_sections", array(ValueType.I32, _QWEN35_SECTIONS))


_EXTRAS: dict[str, Callable[[dict[str, KV], str, Mapping[str, Any], ModelView], None]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen3_moe": _moe,
    "gemma3": _gemma3,
    "qwen3_5": _qwen35,
    "qwen3_5_moe": _qwen35,
}
