"""RoPE in GGUF: the scaling key-values, and Llama 3's frequency factors as a tensor.

Linear and YaRN scaling are numbers that llama.cpp applies itself. Llama 3's piecewise rule is not known to
it: the file carries one divisor per frequency in ``rope_freqs.weight`` instead
(https://github.com/ggml-org/llama.cpp/pull/8676).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qexport.container.gguf_write import KV, ValueType, array, f32, string, u32

if TYPE_CHECKING:
    import torch

    from qexport.families.hyper import Hyper


_YARN_KEYS = (
    ("yarn_ext_factor", ("extrapolation_factor",)),
    ("yarn_attn_factor", ("attention_factor", "attn_factor")),
    ("yarn_beta_fast", ("beta_fast",)),
    ("yarn_beta_slow", ("beta_slow",)),
)


def rope_metadata(arch: str, hyper: Hyper, notes: list[str]) -> dict[str, KV]:
    """``{arch}.rope.*``."""
    result: dict[str, KV] = {}
    rope = hyper.rope
    if rope.kind in ("linear", "yarn") and rope.factor is not None:
        result[f"{arch}.rope.scaling.type"] = string(rope.kind)
        result[f"{arch}.rope.scaling.factor"] = f32(rope.factor)
        if rope.kind == "yarn":
            result[f"{arch}.rope.scaling.original_context_length"] = u32(
                rope.original_context or hyper.context
            )
            for name, spellings in _YARN_KEYS:
                value = next(
                    (rope.values[key] for key in spellings if rope.values.get(key) is not None), None
                )
                if value is not None:
                    result[f"{arch}.rope.scaling.{name}"] = f32(value)
    elif rope.kind == "dynamic":
        notes.append(
            f"RoPE type 'dynamic' has no counterpart in GGUF: up to {hyper.context} tokens nothing changes, "
            "beyond them the base frequency is not raised"
        )
    if rope.sections:
        # Four rotations: time, height, width and one more that no model uses.
        result[f"{arch}.rope.dimension_sections"] = array(ValueType.I32, [*rope.sections, 0, 0, 0, 0][:4])
    result[f"{arch}.rope.freq_base"] = f32(rope.theta)
    if hyper.local_rope is not None:
        result[f"{arch}.rope.freq_base_swa"] = f32(hyper.local_rope.theta)
    return result


def llama3_rope_factors(hyper: Hyper) -> torch.Tensor | None:
    """The values of ``rope_freqs.weight``, float32, or ``None`` where the model has plain frequencies.

    The same float32 operations in the same order as the converter's, frequency by frequency, because a factor
    that differs in its last bit is another file.
    """
    if hyper.rope.kind != "llama3":
        return None
    import torch  # a second of processor time, which other models are spared

    full, dim = hyper.rope.values, hyper.head_dim
    base = full["rope_theta"]
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
