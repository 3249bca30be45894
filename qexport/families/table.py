"""Model families as data: which tensors each has, what they are for, and what shape they must have.

To add a family, add a :class:`Family` here; to let GGUF write it, add its architecture in
``qexport/formats/gguf/arch.py``. Names are canonical (see ``qexport.families.names``), shapes are words
that :func:`dimensions` turns into numbers from the config. The layouts are those of transformers 5
(``models/<family>/modeling_<family>.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qexport.errors import InputError
from qexport.families.roles import Role

__all__ = ["FAMILIES", "Family", "Template", "dimensions", "family_of", "layer_kinds"]


@dataclass(frozen=True)
class Template:
    """One tensor of a block: its name under the block, its role, its shape in words."""

    name: str
    role: Role
    shape: str
    optional: bool = False


T = Template

_ATTENTION = (
    T("self_attn.q_proj.weight", Role.ATTN_Q, "q hidden"),
    T("self_attn.k_proj.weight", Role.ATTN_K, "kv hidden"),
    T("self_attn.v_proj.weight", Role.ATTN_V, "kv hidden"),
    T("self_attn.o_proj.weight", Role.ATTN_OUTPUT, "hidden heads_dim"),
)
_ATTENTION_BIAS = (
    T("self_attn.q_proj.bias", Role.ATTN_Q_BIAS, "q", optional=True),
    T("self_attn.k_proj.bias", Role.ATTN_K_BIAS, "kv", optional=True),
    T("self_attn.v_proj.bias", Role.ATTN_V_BIAS, "kv", optional=True),
    T("self_attn.o_proj.bias", Role.ATTN_OUTPUT_BIAS, "hidden", optional=True),
)
_QK_NORM = (
    T("self_attn.q_norm.weight", Role.ATTN_Q_NORM, "head_dim"),
    T("self_attn.k_norm.weight", Role.ATTN_K_NORM, "head_dim"),
)
_MLP = (
    T("mlp.gate_proj.weight", Role.FFN_GATE, "inter hidden"),
    T("mlp.up_proj.weight", Role.FFN_UP, "inter hidden"),
    T("mlp.down_proj.weight", Role.FFN_DOWN, "hidden inter"),
)
_MLP_BIAS = (
    T("mlp.gate_proj.bias", Role.FFN_GATE_BIAS, "inter", optional=True),
    T("mlp.up_proj.bias", Role.FFN_UP_BIAS, "inter", optional=True),
    T("mlp.down_proj.bias", Role.FFN_DOWN_BIAS, "hidden", optional=True),
)
_EXPERTS = (
    T("mlp.gate.weight", Role.ROUTER, "experts hidden"),
    T("mlp.experts.gate_proj.weight", Role.EXPERTS_GATE, "experts expert_inter hidden"),
    T("mlp.experts.up_proj.weight", Role.EXPERTS_UP, "experts expert_inter hidden"),
    T("mlp.experts.down_proj.weight", Role.EXPERTS_DOWN, "experts hidden expert_inter"),
)
_SHARED_EXPERT = (
    T("mlp.shared_expert.gate_proj.weight", Role.SHARED_EXPERT_GATE, "shared_inter hidden"),
    T("mlp.shared_expert.up_proj.weight", Role.SHARED_EXPERT_UP, "shared_inter hidden"),
    T("mlp.shared_expert.down_proj.weight", Role.SHARED_EXPERT_DOWN, "hidden shared_inter"),
    T("mlp.shared_expert_gate.weight", Role.SHARED_EXPERT_ROUTER, "one hidden"),
)
_GATED_DELTANET = (
    T("linear_attn.in_proj_qkv.weight", Role.LINEAR_QKV, "linear_qkv hidden"),
    T("linear_attn.in_proj_z.weight", Role.LINEAR_Z, "linear_v hidden"),
    T("linear_attn.in_proj_a.weight", Role.LINEAR_A, "linear_v_heads hidden"),
    T("linear_attn.in_proj_b.weight", Role.LINEAR_B, "linear_v_heads hidden"),
    T("linear_attn.out_proj.weight", Role.LINEAR_OUT, "hidden linear_v"),
    T("linear_attn.conv1d.weight", Role.LINEAR_CONV, "linear_qkv one linear_conv"),
    T("linear_attn.norm.weight", Role.LINEAR_NORM, "linear_v_head_dim"),
    T("linear_attn.A_log", Role.LINEAR_A_LOG, "linear_v_heads"),
    T("linear_attn.dt_bias", Role.LINEAR_DT_BIAS, "linear_v_heads"),
)
_PRE_NORMS = (
    T("input_layernorm.weight", Role.ATTN_NORM, "hidden"),
    T("post_attention_layernorm.weight", Role.FFN_NORM, "hidden"),
)
_SANDWICH_NORMS = (
    T("input_layernorm.weight", Role.ATTN_NORM, "hidden"),
    T("post_attention_layernorm.weight", Role.POST_ATTN_NORM, "hidden"),
    T("pre_feedforward_layernorm.weight", Role.FFN_NORM, "hidden"),
    T("post_feedforward_layernorm.weight", Role.POST_FFN_NORM, "hidden"),
)
# https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/models/qwen3_5_mtp.py
_MTP = (
    T("fc.weight", Role.MTP_FC, "hidden two_hidden"),
    T("pre_fc_norm_embedding.weight", Role.MTP_EMBED_NORM, "hidden"),
    T("pre_fc_norm_hidden.weight", Role.MTP_HIDDEN_NORM, "hidden"),
    T("norm.weight", Role.MTP_NORM, "hidden"),
)


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: the transformers model type of the language model without ``_text``.
        model_types: values of ``model_type`` (root or ``text_config``) that mean this family.
        causal_arch, wrapper_arch: class names of the text-only and the multimodal form.
        text_model_type: ``model_type`` of a text-only config, as transformers writes it.
        layers: layer kind (``full``, ``linear``) to its tensors.
        mtp, mtp_layer: tensors of the MTP head and of its decoder layer; empty where there is no head.
        gated_q: the query projection also makes an output gate, and is twice as wide.
        defaults: hyper-parameters that transformers takes when a config leaves them out.
        wrapper_prefix, wrapper_head, vision_prefix: what published multimodal checkpoints write in front of
            the language model's tensors, ``lm_head.`` and the vision tower.
    """

    name: str
    model_types: tuple[str, ...]
    causal_arch: str
    text_model_type: str
    layers: Mapping[str, tuple[Template, ...]]
    wrapper_arch: str | None = None
    wrapper_model_type: str | None = None
    mtp: tuple[Template, ...] = ()
    mtp_layer: tuple[Template, ...] = ()
    gated_q: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    wrapper_prefix: str = "model.language_model."
    wrapper_head: str = ""
    vision_prefix: str = "model."

    @property
    def is_moe(self) -> bool:
        return any(t.role is Role.ROUTER for kind in self.layers.values() for t in kind)


_QWEN35_FULL = (*_PRE_NORMS, *_ATTENTION, *_ATTENTION_BIAS, *_QK_NORM)
_QWEN35_LINEAR = (*_PRE_NORMS, *_GATED_DELTANET)
_QWEN35_MOE = (*_EXPERTS, *_SHARED_EXPERT)
_QWEN35_DEFAULTS = {
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
# The published Gemma 3 wrappers leave out whatever equals Gemma3TextConfig's defaults:
# https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma3/configuration_gemma3.py
_GEMMA3_DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000.0,
    "rope_theta": 1000000.0,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
    "vocab_size": 262208,
}
_DENSE = (*_PRE_NORMS, *_ATTENTION, *_ATTENTION_BIAS, *_MLP, *_MLP_BIAS)

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="qwen3_5",
            model_types=("qwen3_5", "qwen3_5_text"),
            causal_arch="Qwen3_5ForCausalLM",
            wrapper_arch="Qwen3_5ForConditionalGeneration",
            text_model_type="qwen3_5_text",
            wrapper_model_type="qwen3_5",
            layers={"full": (*_QWEN35_FULL, *_MLP), "linear": (*_QWEN35_LINEAR, *_MLP)},
            mtp=_MTP,
            mtp_layer=(*_QWEN35_FULL, *_MLP),
            gated_q=True,
            defaults=_QWEN35_DEFAULTS,
        ),
        Family(
            name="qwen3_5_moe",
            model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
            causal_arch="Qwen3_5MoeForCausalLM",
            wrapper_arch="Qwen3_5MoeForConditionalGeneration",
            text_model_type="qwen3_5_moe_text",
            wrapper_model_type="qwen3_5_moe",
            layers={"full": (*_QWEN35_FULL, *_QWEN35_MOE), "linear": (*_QWEN35_LINEAR, *_QWEN35_MOE)},
            mtp=_MTP,
            mtp_layer=(*_QWEN35_FULL, *_QWEN35_MOE),
            gated_q=True,
            defaults=_QWEN35_DEFAULTS,
        ),
        Family(
            name="llama",
            model_types=("llama",),
            causal_arch="LlamaForCausalLM",
            text_model_type="llama",
            layers={"full": _DENSE},
        ),
        Family(
            name="mistral",
            model_types=("mistral",),
            causal_arch="MistralForCausalLM",
            text_model_type="mistral",
            layers={"full": _DENSE},
        ),
        Family(
            name="qwen2",
            model_types=("qwen2",),
            causal_arch="Qwen2ForCausalLM",
            text_model_type="qwen2",
            layers={"full": _DENSE},
        ),
        Family(
            name="qwen3",
            model_types=("qwen3",),
            causal_arch="Qwen3ForCausalLM",
            text_model_type="qwen3",
            layers={"full": (*_PRE_NORMS, *_ATTENTION, *_ATTENTION_BIAS, *_QK_NORM, *_MLP)},
            defaults={"head_dim": 128},
        ),
        Family(
            name="qwen3_moe",
            model_types=("qwen3_moe",),
            causal_arch="Qwen3MoeForCausalLM",
            text_model_type="qwen3_moe",
            layers={
                "full": (*_PRE_NORMS, *_ATTENTION, *_ATTENTION_BIAS, *_QK_NORM, *_EXPERTS),
                "dense": (*_PRE_NORMS, *_ATTENTION, *_ATTENTION_BIAS, *_QK_NORM, *_MLP),
            },
        ),
        Family(
            name="gemma3",
            model_types=("gemma3", "gemma3_text"),
            causal_arch="Gemma3ForCausalLM",
            wrapper_arch="Gemma3ForConditionalGeneration",
            text_model_type="gemma3_text",
            wrapper_model_type="gemma3",
            layers={"full": (*_SANDWICH_NORMS, *_ATTENTION, *_ATTENTION_BIAS, *_QK_NORM, *_MLP)},
            defaults=_GEMMA3_DEFAULTS,
            wrapper_prefix="language_model.model.",
            wrapper_head="language_model.",
            vision_prefix="",
        ),
    )
}


# Far above any model; numbers beyond come from damaged files, and would be counted to one by one.
_MOST_LAYERS, _MOST_EXPERTS = 10_000, 100_000


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a config's ``model_type`` or architecture names.

    Raises:
        InputError: the model type is missing, or no family here knows it.
    """
    text = config.get("text_config")
    words = [config.get("model_type"), text.get("model_type") if isinstance(text, Mapping) else None]
    for family in FAMILIES.values():
        if any(word in family.model_types for word in words if word):
            return family
    architectures = config.get("architectures")
    architectures = architectures if isinstance(architectures, list) else []
    for family in FAMILIES.values():
        if family.causal_arch in architectures or family.wrapper_arch in architectures:
            return family
    known = ", ".join(FAMILIES)
    raise InputError(
        f"the model type {words[0]!r} (architectures {architectures!r}) is not one that qexport knows",
        hint=f"Families that it can export: {known}.",
    )


def layer_kinds(family: Family, text: Mapping[str, Any]) -> tuple[str, ...]:
    """For each trunk layer, the key into ``family.layers``.

    Raises:
        InputError: ``num_hidden_layers`` is missing or ``layer_types`` has another length.
    """
    count = _number(text, "num_hidden_layers")
    if count > _MOST_LAYERS:
        raise InputError(f"config.json: num_hidden_layers is {count}, which no model has")
    if "linear" in family.layers:
        types = text.get("layer_types")
        if types is None:
            interval = _number({"full_attention_interval": 4, **_given(text)}, "full_attention_interval")
            return tuple("linear" if (i + 1) % interval else "full" for i in range(count))
        if not isinstance(types, list) or len(types) != count:
            found = f"{len(types)} entries" if isinstance(types, list) else f"the value {types!r}"
            raise InputError(f"layer_types has {found}, but num_hidden_layers is {count}")
        return tuple("linear" if kind == "linear_attention" else "full" for kind in types)
    if "dense" in family.layers:
        dense, step = text.get("mlp_only_layers") or [], text.get("decoder_sparse_step") or 1
        if not isinstance(dense, list) or not isinstance(step, int):
            raise InputError(
                f"mlp_only_layers is {dense!r} and decoder_sparse_step {step!r}: not a list and a number"
            )
        return tuple("dense" if i in dense or (i + 1) % step else "full" for i in range(count))
    return ("full",) * count


def dimensions(family: Family, text: Mapping[str, Any]) -> dict[str, int]:
    """Numbers for the words in template shapes, from the language model's config.

    Raises:
        InputError: a hyper-parameter that has no default is missing or not a positive integer.
    """

    def get(key: str) -> int:
        return (
            int(family.defaults[key])
            if text.get(key) is None and key in family.defaults
            else _number(text, key)
        )

    hidden, heads = _number(text, "hidden_size"), _number(text, "num_attention_heads")
    kv_heads = _number(text, "num_key_value_heads") if text.get("num_key_value_heads") else heads
    given = text.get("head_dim") or family.defaults.get("head_dim")
    head_dim = _number({"head_dim": given}, "head_dim") if given else hidden // heads
    dims = {
        "one": 1,
        "hidden": hidden,
        "two_hidden": 2 * hidden,
        "vocab": _number(text, "vocab_size"),
        "head_dim": head_dim,
        "heads_dim": heads * head_dim,
        "q": heads * head_dim * (2 if family.gated_q else 1),
        "kv": kv_heads * head_dim,
    }
    if text.get("intermediate_size"):
        dims["inter"] = _number(text, "intermediate_size")
    if family.is_moe:
        experts = "num_experts" if "num_experts" in text else "num_local_experts"
        dims["experts"] = _number(text, experts)
        if dims["experts"] > _MOST_EXPERTS:
            raise InputError(f"config.json: {experts} is {dims['experts']}, which no model has")
        dims["expert_inter"] = _number(text, "moe_intermediate_size")
        if text.get("shared_expert_intermediate_size"):
            dims["shared_inter"] = _number(text, "shared_expert_intermediate_size")
    if "linear" in family.layers:
        k_heads, v_heads = get("linear_num_key_heads"), get("linear_num_value_heads")
        k_dim, v_dim = get("linear_key_head_dim"), get("linear_value_head_dim")
        dims |= {
            "linear_qkv": 2 * k_heads * k_dim + v_heads * v_dim,
            "linear_v": v_heads * v_dim,
            "linear_v_heads": v_heads,
            "linear_k_heads": k_heads,
            "linear_v_head_dim": v_dim,
            "linear_k_head_dim": k_dim,
            "linear_conv": get("linear_conv_kernel_dim"),
        }
    return dims


def _given(text: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in text.items() if value is not None}


def _number(text: Mapping[str, Any], key: str) -> int:
    value = text.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(
            f"config.json: {key} is {value!r}, but must be a positive integer",
            hint="Copy config.json from the checkpoint that was fine-tuned and try again.",
        )
    return value
