"""Hyper-parameters: ``{arch}.*`` key-values, from the resolved ones.

Every family has the same list, as llama.cpp's loader reads one list for every architecture
(``llama_model_base::load_hparams``, https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp);
what a family has beyond it is a function in a table. Order and omissions are the converter's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qexport.container.gguf_write import KV, ValueType, array, boolean, f32, u32
from qexport.formats.gguf.arch import arch_of
from qexport.formats.gguf.rope import rope_metadata

if TYPE_CHECKING:
    from qexport.families.hyper import Hyper
    from qexport.families.view import ModelView


_GEMMA3_EVERY = 6  # llama.cpp's own pattern: five layers with a window, one without


def hyper_parameters(view: ModelView, file_type: int, notes: list[str]) -> dict[str, KV]:
    """Every ``{arch}.*`` key and ``general.file_type``, in the converter's order."""
    arch, hyper = arch_of(view).name, view.hyper
    found: dict[str, KV | None] = {
        "block_count": u32(view.layers + view.mtp_layers),
        "context_length": u32(hyper.context),
        "embedding_length": u32(hyper.hidden),
        "feed_forward_length": None if hyper.inner is None else u32(hyper.inner),
        "attention.head_count": u32(hyper.heads),
        "attention.head_count_kv": u32(hyper.kv_heads),
        "attention.causal": None if hyper.causal else boolean(False),
    }
    result = _present(arch, found)
    result.update(rope_metadata(arch, hyper, notes))
    result.update(_present(arch, {"attention.layer_norm_rms_epsilon": f32(hyper.epsilon)}))
    if hyper.experts is not None:
        used = {"expert_count": u32(hyper.experts.count), "expert_used_count": u32(hyper.experts.used)}
        result.update(_present(arch, used))
    # The converter says it where the config class has the key, or the config does.
    if "head_dim" in hyper.family.defaults or hyper.sources.get("head_dim") == "stated":
        size = u32(hyper.head_dim)
        result.update(_present(arch, {"attention.key_length": size, "attention.value_length": size}))
    result["general.file_type"] = u32(file_type)
    if extra := _EXTRAS.get(view.family):
        result.update(_present(arch, extra(hyper, view)))
    return result


def _present(arch: str, found: dict[str, KV | None] | dict[str, KV]) -> dict[str, KV]:
    return {f"{arch}.{key}": value for key, value in found.items() if value is not None}


def _llama(hyper: Hyper, view: ModelView) -> dict[str, KV | None]:
    return {"vocab_size": u32(hyper.vocab), "rope.dimension_count": u32(hyper.head_dim)}


def _moe(hyper: Hyper, view: ModelView) -> dict[str, KV | None]:
    if (experts := hyper.experts) is None:
        return {}
    shared = experts.shared_inner
    return {
        "expert_feed_forward_length": u32(experts.inner),
        "expert_shared_feed_forward_length": None if shared is None else u32(shared),
    }


def _gemma3(hyper: Hyper, view: ModelView) -> dict[str, KV | None]:
    found: dict[str, KV | None] = {
        "final_logit_softcapping": None if hyper.softcap is None else f32(hyper.softcap)
    }
    slides = [window is not None for window in hyper.windows]
    if any(slides):
        found["attention.sliding_window"] = u32(
            next(window for window in hyper.windows if window is not None)
        )
        if slides != [bool((layer + 1) % _GEMMA3_EVERY) for layer in range(hyper.layers)]:
            found["attention.sliding_window_pattern"] = array(ValueType.BOOL, slides)
    return found


def _qwen35(hyper: Hyper, view: ModelView) -> dict[str, KV | None]:
    linear = hyper.linear
    assert linear is not None
    # The MTP block is a full-attention one.
    recurrent = [kind == "linear" for kind in hyper.kinds] + [False] * view.mtp_layers
    return {
        **_moe(hyper, view),
        "nextn_predict_layers": u32(view.mtp_layers) if view.mtp_layers else None,
        "ssm.conv_kernel": u32(linear.kernel),
        "ssm.state_size": u32(linear.k_dim),
        "ssm.group_count": u32(linear.k_heads),
        "ssm.time_step_rank": u32(linear.v_heads),
        "ssm.inner_size": u32(linear.v_dim * linear.v_heads),
        "attention.recurrent_layers": array(ValueType.BOOL, recurrent),
        "full_attention_interval": u32(hyper.interval or 4),
        "rope.dimension_count": u32(hyper.rotary),
    }


_EXTRAS: dict[str, Callable[[Hyper, ModelView], dict[str, KV | None]]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen3_moe": _moe,
    "gemma3": _gemma3,
    "qwen3_5": _qwen35,
    "qwen3_5_moe": _qwen35,
}
