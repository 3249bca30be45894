"""Hyper-parameters: ``{arch}.*`` key-values, from the resolved ones.

Every family has the same list, as llama.cpp's loader reads one list for every architecture
(``llama_model_base::load_hparams``, https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp);
what a family has beyond it is in its file (``Arch.keys``). Order and omissions are the converter's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.container.gguf_write import KV, ValueType, array, boolean, f32, u32
from qexport.formats.gguf.arch import arch_of
from qexport.formats.gguf.rope import rope_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.families.family import Arch, Value
    from qexport.families.view import ModelView


def hyper_parameters(view: ModelView, file_type: int, notes: list[str]) -> dict[str, KV]:
    """Every ``{arch}.*`` key and ``general.file_type``, in the converter's order."""
    arch, hyper = arch_of(view), view.hyper
    experts = hyper.experts
    found: dict[str, Value] = {
        "block_count": view.layers + view.mtp_layers,
        "context_length": hyper.context,
        "embedding_length": hyper.hidden,
        "feed_forward_length": hyper.inner,
        "attention.head_count": hyper.heads,
        "attention.head_count_kv": hyper.kv_heads,
        "attention.causal": None if hyper.causal else False,
    }
    result = _present(arch, found)
    result |= rope_metadata(arch.name, hyper, notes)
    found = {"attention.layer_norm_rms_epsilon": float(hyper.epsilon)}
    if experts is not None:
        found |= {"expert_count": experts.count, "expert_used_count": experts.used}
        if "n_group" in hyper.family.defaults:
            found |= {"expert_group_count": experts.groups, "expert_group_used_count": experts.groups_used}
    # The converter says it where the config class has the key, or the config does.
    if "head_dim" in hyper.family.defaults or hyper.sources.get("head_dim") == "stated":
        found |= {"attention.key_length": hyper.head_dim, "attention.value_length": hyper.head_dim}
    result |= _present(arch, found)
    result["general.file_type"] = u32(file_type)
    result |= _present(arch, arch.keys(hyper, view.mtp_layers) if arch.keys is not None else {})
    if hyper.family.vision is not None and hyper.family.vision.deepstack is not None:
        stacked = () if view.vision is None else view.vision.deepstack
        result |= _present(arch, {"n_deepstack_layers": len(stacked)})
    return result


def _present(arch: Arch, found: Mapping[str, Value]) -> dict[str, KV]:
    return {f"{arch.name}.{key}": _kv(value) for key, value in found.items() if value is not None}


def _kv(value: int | float | bool | Sequence[bool]) -> KV:
    if isinstance(value, bool):
        return boolean(value)
    if isinstance(value, int):
        return u32(value)
    return f32(value) if isinstance(value, float) else array(ValueType.BOOL, list(value))
