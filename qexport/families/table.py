"""Model families as data: which tensors each has, what they are for, and what shape they must have.

To add a family, add a :class:`Family` here; to let GGUF write it, add its architecture in
``qexport/formats/gguf/arch.py``. Names are canonical (see ``qexport.families.names``), shapes are words
that :attr:`qexport.families.hyper.Hyper.dims` turns into numbers. The layouts are those of transformers 5
(``models/<family>/modeling_<family>.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qexport.checkpoint.config import text_config
from qexport.errors import InputError
from qexport.families.defaults import DEFAULTS
from qexport.families.roles import Role


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
_QKV_BIAS = (
    T("self_attn.q_proj.bias", Role.ATTN_Q_BIAS, "q", optional=True),
    T("self_attn.k_proj.bias", Role.ATTN_K_BIAS, "kv", optional=True),
    T("self_attn.v_proj.bias", Role.ATTN_V_BIAS, "kv", optional=True),
)
_ATTENTION_BIAS = (
    *_QKV_BIAS,
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
    wrapper_prefix: str = "model.language_model."
    wrapper_head: str = ""
    vision_prefix: str = "model."

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Hyper-parameters that transformers takes when a config leaves them out."""
        return DEFAULTS[self.name]

    @property
    def config_class(self) -> str:
        """transformers' class of the language model's config."""
        text = "Text" if self.text_model_type.endswith("_text") else ""
        return self.causal_arch.removesuffix("ForCausalLM") + text + "Config"

    @property
    def is_moe(self) -> bool:
        return any(t.role is Role.ROUTER for kind in self.layers.values() for t in kind)


_QWEN35_FULL = (*_PRE_NORMS, *_ATTENTION, *_ATTENTION_BIAS, *_QK_NORM)
_QWEN35_LINEAR = (*_PRE_NORMS, *_GATED_DELTANET)
_QWEN35_MOE = (*_EXPERTS, *_SHARED_EXPERT)
_DENSE = (*_PRE_NORMS, *_ATTENTION, *_MLP)

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
        ),
        Family(
            name="llama",
            model_types=("llama",),
            causal_arch="LlamaForCausalLM",
            text_model_type="llama",
            layers={"full": (*_DENSE, *_ATTENTION_BIAS, *_MLP_BIAS)},
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
            layers={"full": (*_DENSE, *_QKV_BIAS)},
        ),
        Family(
            name="qwen3",
            model_types=("qwen3",),
            causal_arch="Qwen3ForCausalLM",
            text_model_type="qwen3",
            layers={"full": (*_PRE_NORMS, *_ATTENTION, *_ATTENTION_BIAS, *_QK_NORM, *_MLP)},
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
            wrapper_prefix="language_model.model.",
            wrapper_head="language_model.",
            vision_prefix="",
        ),
    )
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a config's ``model_type`` or architecture names.

    Raises:
        InputError: the model type is missing, or no family here knows it.
    """
    words = [config.get("model_type"), text_config(config).get("model_type")]
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
