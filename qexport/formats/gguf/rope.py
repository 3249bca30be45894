"""RoPE in GGUF: the scaling key-values, and Llama 3's frequency factors as a tensor.

Linear and YaRN scaling are numbers that llama.cpp applies itself. Llama 3's piecewise rule is not known to
it: the file carries one divisor per frequency in ``rope_freqs.weight`` instead
(https://github.com/ggml-org/llama.cpp/pull/8676).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qexport.formats.gguf.kv import KV, ValueType, array, f32, string, u32

if TYPE_CHECKING:
    import torch

__all__ = ["llama3_rope_factors", "rope_metadata"]

_YARN_KEYS = (
    ("yarn_ext_factor", ("extrapolation_factor",)),
    ("yarn_attn_factor", ("attention_factor", "attn_factor")),
    ("yarn_beta_fast", ("beta_fast",)),
    ("yarn_beta_slow", ("beta_slow",)),
)


def rope_metadata(arch: str, rope: Mapping[str, Any], notes: list[str]) -> dict[str, KV]:
    """``{arch}.rope.*`` for resolved RoPE parameters (see ``resolved_config``)."""
    result: dict[str, KV] = {}
    full = rope.get("full_attention") or rope
    kind = str(full.get("rope_type") or "default").lower()
    factor = full.get("factor")
    if kind in ("linear", "yarn") and factor is not None:
        result[f"{arch}.rope.scaling.type"] = string(kind)
        result[f"{arch}.rope.scaling.factor"] = f32(factor)
        if kind == "yarn":
            result[f"{arch}.rope.scaling.original_context_length"] = u32(
                full["original_max_position_embeddings"]
            )
            for name, spellings in _YARN_KEYS:
                value = next((full[key] for key in spellings if full.get(key) is not None), None)
                if value is not None:
                    result[f"{arch}.rope.scaling.{name}"] = f32(value)
    elif kind in ("su", "longrope"):
        result[f"{arch}.rope.scaling.type"] = string("longrope")
    elif kind not in ("default", "llama3", "linear", "yarn"):
        notes.append(f"RoPE type {kind!r} has no counterpart in GGUF: only its base frequency is written")

    if sections := rope.get("mrope_section"):
        # Four rotations: time, height, width and one more that no model uses.
        result[f"{arch}.rope.dimension_sections"] = array(ValueType.I32, [*sections, 0, 0, 0, 0][:4])
    if full.get("rope_theta") is not None:
        result[f"{arch}.rope.freq_base"] = f32(full["rope_theta"])
    sliding = rope.get("sliding_attention") or {}
    if sliding.get("rope_theta") is not None:
        result[f"{arch}.rope.freq_base_swa"] = f32(sliding["rope_theta"])
    return result


def llama3_rope_factors(config: Mapping[str, Any]) -> torch.Tensor | None:
    """The values of ``rope_freqs.weight``, float32, or ``None`` where the model has plain frequencies.

    The same float32 operations in the same order as the converter's, frequency by frequency, because a factor
    that differs in its last bit is another file.
    """
    rope = config["rope_parameters"]
    full = rope.get("full_attention") or rope
    if str(full.get("rope_type") or "").lower() != "llama3":
        return None
    import torch  # a second of processor time, which other models are spared

    base = full.get("rope_theta", 10000.0)
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    frequencies = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))

    factor = full.get("factor", 8.0)
    low = full.get("low_freq_factor", 1.0)
    high = full.get("high_freq_factor", 4.0)
    context = full.get("original_max_position_embeddings", 8192)

    factors: list[Any] = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < context / high:
            factors.append(1)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)
