"""Llama and Mistral: plain transformers; llama.cpp wants their rotary halves interleaved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.families.family import Arch, Dialect, Family
from qexport.families.layers import ATTENTION, ATTENTION_BIAS, MLP, MLP_BIAS, PLAIN, PRE_NORMS
from qexport.families.roles import BIAS_ROLES

if TYPE_CHECKING:
    from qexport.families.hyper import Hyper


def _keys(hyper: Hyper, _: int) -> dict[str, int]:
    return {"vocab_size": hyper.vocab, "rope.dimension_count": hyper.head_dim}


_ARCH = Arch(
    "llama",
    keys=_keys,
    interleaved_rope=True,
    biases=BIAS_ROLES,
    factors=True,
    vocabulary="llama",
    scaled=True,
)
_DIALECT = Dialect(biases=BIAS_ROLES)
_LAYER = (*PRE_NORMS, *ATTENTION, *MLP)

LLAMA = Family(
    name="llama",
    causal_arch="LlamaForCausalLM",
    text_model_type="llama",
    layers={"full": (*_LAYER, *ATTENTION_BIAS, *MLP_BIAS)},
    arch=_ARCH,
    dialect=_DIALECT,
    null_kv_heads=True,
    heads_divide=True,
    defaults={
        **PLAIN,
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "head_dim": None,
        "attention_bias": False,
        "mlp_bias": False,
    },
)
MISTRAL = Family(
    name="mistral",
    causal_arch="MistralForCausalLM",
    text_model_type="mistral",
    layers={"full": _LAYER},
    arch=_ARCH,
    dialect=_DIALECT,
    null_kv_heads=True,
    defaults={
        **PLAIN,
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "head_dim": None,
        "sliding_window": 4096,
    },
)
