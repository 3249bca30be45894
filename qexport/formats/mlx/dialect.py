"""How mlx-lm sees each family: names after ``sanitize``, norms, router gates, what its config readers need.

To let MLX write a family, add a :class:`Dialect` here. Each says what the model file of mlx-lm 0.32 does:
https://github.com/ml-explore/mlx-lm/tree/main/mlx_lm/models (``sanitize``, ``quant_predicate``,
``cast_predicate`` of llama.py, qwen2.py, qwen3.py, qwen3_moe.py, qwen3_5.py, qwen3_5_moe.py, gemma3.py,
gemma3_text.py). Gemma's norms stay zero-centred: its RMSNorm adds the 1 when it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError
from qexport.families.roles import EXPERT_ROLES, NORM_ROLES, Block, Role

if TYPE_CHECKING:
    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor, ModelView


_BIASES = frozenset(role for role in Role if role.value.endswith("_bias")) - {Role.LINEAR_DT_BIAS}
_ATTENTION_BIASES = frozenset({Role.ATTN_Q_BIAS, Role.ATTN_K_BIAS, Role.ATTN_V_BIAS})


@dataclass(frozen=True)
class Dialect:
    """mlx-lm's view of one family.

    Attributes:
        always_wrapped: mlx-lm knows the model type of the multimodal form alone.
        prefix: in front of every name; in the multimodal form only, where ``wrapper_prefix`` says so.
        norms_plus_one: roles of norms that are stored with the 1 added.
        keeps_float32: roles that are never cast.
        gates: roles of routers, quantized with 8 bits in groups of 64 whatever the rest has.
        biases: roles of biases that its layers have.
        reads: config keys of the family that mlx-lm reads beyond those of all.
    """

    always_wrapped: bool = False
    prefix: str = ""
    wrapper_prefix: str = ""
    norms_plus_one: frozenset[Role] = frozenset()
    keeps_float32: frozenset[Role] = frozenset()
    gates: frozenset[Role] = frozenset()
    biases: frozenset[Role] = frozenset()
    reads: frozenset[str] = frozenset()


_MOE = frozenset({"num_experts", "num_experts_per_tok", "moe_intermediate_size"})
_QWEN35: dict[str, Any] = {
    "always_wrapped": True,
    "prefix": "language_model.",
    "norms_plus_one": NORM_ROLES - {Role.LINEAR_NORM},
    "keeps_float32": frozenset({Role.LINEAR_A_LOG}),
    "biases": _ATTENTION_BIASES | {Role.ATTN_OUTPUT_BIAS},
    "reads": _MOE
    | {
        "attention_bias",
        "layer_types",
        "linear_conv_kernel_dim",
        "linear_key_head_dim",
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_value_head_dim",
        "shared_expert_intermediate_size",
    },
}
_LLAMA = Dialect(biases=_BIASES)

DIALECTS: Mapping[str, Dialect] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Dialect(biases=_ATTENTION_BIASES),
    "qwen3": Dialect(),
    "qwen3_moe": Dialect(
        gates=frozenset({Role.ROUTER}),
        reads=_MOE | {"decoder_sparse_step", "mlp_only_layers", "norm_topk_prob"},
    ),
    "gemma3": Dialect(
        wrapper_prefix="language_model.",
        reads=frozenset(
            {"query_pre_attn_scalar", "rope_local_base_freq", "sliding_window", "sliding_window_pattern"}
        ),
    ),
    "qwen3_5": Dialect(**_QWEN35),
    "qwen3_5_moe": Dialect(gates=frozenset({Role.ROUTER, Role.SHARED_EXPERT_ROUTER}), **_QWEN35),
}


def dialect_of(view: ModelView) -> Dialect:
    """The dialect of a model.

    Raises:
        InputError: mlx-lm has no model for the family, or its layers lack biases that this one has.
    """
    dialect = DIALECTS.get(view.family)
    if dialect is None:
        raise InputError(f"MLX export does not know the {view.family} family; it knows {', '.join(DIALECTS)}")
    alien = [t.name for t in view if t.role in _BIASES - dialect.biases and t.block is not Block.MTP]
    if alien:
        raise InputError(f"mlx-lm's {view.family} has no biases, but there is {alien[0]}")
    return dialect


def stored_name(dialect: Dialect, repaired: Repaired, tensor: ModelTensor) -> str:
    """The name after mlx-lm's ``sanitize``; that of the weight where a module is quantized."""
    name = tensor.name
    if tensor.role in EXPERT_ROLES:
        name = name.replace(".mlp.experts.", ".mlp.switch_mlp.")
    return (dialect.wrapper_prefix if repaired.wrapper else "") + dialect.prefix + name


def module_path(name: str) -> str:
    """The module that a weight belongs to."""
    return name.removesuffix(".weight")
