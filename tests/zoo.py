"""Tiny random checkpoints of every family, the same bytes on every machine.

`build("qwen3_5", folder)` writes a checkpoint as its publisher writes it (or as transformers 5.17 saves it
after a merge): config, tokenizer, generation config, safetensors. Nothing here imports transformers or draws
from a torch generator; a weight is a function of the seed and of the tensor's plain name
(`model.layers.0.mlp.up_proj.weight`, experts counted one by one), computed with integer arithmetic. So the
wrapper and the text-only form of a model, or its fused and its one-by-one experts, hold the same numbers, and
the goldens under `oracle/` can be checked anywhere. `test_zoo.py` compares the files with what transformers
itself writes.

    build(name, out, **options) -> out        names and defaults: ZOO; options: see `Options`
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoo_tokenizers
from safetensors.torch import save_file
from zoo_tokenizers import TokenizerInfo

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Options:
    """Everything a zoo checkpoint can be varied by; `ZOO` holds each entry's defaults."""

    family: str
    tokenizer: str
    style: str = "published"
    """"published": keys as the model's author wrote them; "saved": keys as transformers 5.17 writes them."""
    form: str = "flat"
    """"wrapper": vision-language config and names (`model.language_model.`); "flat": text only (`model.`)."""
    seed: int = 0
    dtype: str = "bf16"
    shards: int = 1
    hidden: int = 256
    layers: int = 3
    intermediate: int = 512
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    tied: bool = False
    vocab: int | None = None
    """Rows of the embedding; None: as many as the tokenizer has tokens."""
    rope: str = "default"
    """"default" or "llama3" (frequency scaling)."""
    # Mixture of experts
    experts: int = 0
    experts_per_token: int = 2
    expert_layout: str = "each"
    """"fused" (`experts.gate_up_proj`), "turned" (the same as [experts, in, out], as Qwen3-VL's) or "each"
    (`experts.0.gate_proj.weight`)."""
    # Gated DeltaNet hybrids
    key_heads: int = 2
    value_heads: int = 4
    linear_dim: int = 64
    qk_norm: bool = False
    """GLM's larger models have norms of q and k."""
    float32_ssm: bool = False
    """Keep A_log and linear_attn.norm in float32, as the Qwen3.5 repositories do."""
    mtp: bool = False
    mtp_expert_layout: str = "fused"
    vision: bool = False
    vision_depth: int = 2
    vision_intermediate: int = 128
    deepstack: tuple[int, ...] = ()
    """Blocks of the tower whose output goes into the language model."""


@dataclass(frozen=True)
class Entry:
    """One checkpoint of the zoo: its options, and how the llama.cpp toolchain has to be called for it."""

    options: Options
    convert_flags: tuple[str, ...] = ()
    pre: str | None = None
    note: str = ""


# --- numbers ---------------------------------------------------------------------------------------------


Words = np.ndarray[Any, np.dtype[np.uint64]]


def _raw(seed: int, name: str, count: int) -> Words:
    """`count` random words. PCG64 and SeedSequence are stable by numpy's promise; distributions are not."""
    return np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(count).astype("<u8", copy=False)


def _bell(words: Words, shape: tuple[int, ...], std: float, mean: float) -> torch.Tensor:
    """The sum of each word's four 16-bit parts: nearly normal, and no libm or vector unit has a say."""
    first, *rest = words.view("<u2").reshape(-1, 4).T
    unit = first.astype(np.float64)
    for part in rest:  # in place, part by part: six times as fast as one expression
        unit += part
    unit -= 131070.0
    unit *= 2.0**-15
    unit *= std / 1.1547005
    unit += mean
    return torch.from_numpy(unit.astype(np.float32).reshape(shape))


def normal(seed: int, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> torch.Tensor:
    """Nearly normal float32 values, a function of seed and name."""
    return _bell(_raw(seed, name, int(np.prod(shape))), shape, std, mean)


def heavy(seed: int, name: str, shape: tuple[int, ...], std: float) -> torch.Tensor:
    """Like `normal`, with one weight in 512 eight times as large and one loud input column."""
    words = _raw(seed, name, int(np.prod(shape)))
    values = _bell(words, shape, std, 0.0)
    pick = (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(55)
    values.view(-1)[torch.from_numpy(np.flatnonzero(pick == 0))] *= 8
    values[..., int(zlib.crc32(name.encode()) % shape[-1])] *= 4
    return values


def _weight(seed: int, name: str, shape: tuple[int, ...], centred: bool) -> torch.Tensor:
    """The tensor called `name`, at the size that such tensors have in trained models.

    `centred`: the family's RMSNorm computes `1 + weight` (Qwen3.5, Gemma).
    """
    if name.endswith("linear_attn.A_log"):
        return normal(seed, name, shape, 0.5, 1.4)
    if name.endswith("linear_attn.dt_bias"):
        return normal(seed, name, shape, 0.4, 1.0)
    if name.endswith("linear_attn.norm.weight"):
        return normal(seed, name, shape, 0.05, 0.95)
    if name.endswith("conv1d.weight"):
        return normal(seed, name, shape, 0.2)
    seeing = "visual" in name or name.startswith(("vision_tower.", "multi_modal_projector."))
    if "norm" in name.split(".")[-2] and not seeing:
        return normal(seed, name, shape, 0.1, 0.2 if centred else 1.0)
    if seeing:
        flat = len(shape) == 1
        return normal(seed, name, shape, 0.02, 1.0 if flat and "norm" in name and "weight" in name else 0.0)
    if len(shape) == 1:
        return normal(seed, name, shape, 0.5)
    std = 0.02 + 0.005 * (zlib.crc32(name.encode()) % 7)
    return heavy(seed, name, shape, std)


# --- shapes: (plain name, shape) of every tensor ---------------------------------------------------------


Rows = Iterator[tuple[str, tuple[int, ...]]]


def _attention(o: Options, prefix: str, *, gate: bool, bias: bool, norms: bool) -> Rows:
    q, kv = o.heads * o.head_dim, o.kv_heads * o.head_dim
    for part, rows in (("q", q * 2 if gate else q), ("k", kv), ("v", kv)):
        yield f"{prefix}.self_attn.{part}_proj.weight", (rows, o.hidden)
        if bias:
            yield f"{prefix}.self_attn.{part}_proj.bias", (rows,)
    yield f"{prefix}.self_attn.o_proj.weight", (o.hidden, q)
    if norms:
        yield f"{prefix}.self_attn.q_norm.weight", (o.head_dim,)
        yield f"{prefix}.self_attn.k_norm.weight", (o.head_dim,)


def _linear_attention(o: Options, prefix: str) -> Rows:
    value = o.value_heads * o.linear_dim
    channels = 2 * o.key_heads * o.linear_dim + value
    for name, shape in {
        "in_proj_qkv.weight": (channels, o.hidden),
        "in_proj_z.weight": (value, o.hidden),
        "in_proj_a.weight": (o.value_heads, o.hidden),
        "in_proj_b.weight": (o.value_heads, o.hidden),
        "out_proj.weight": (o.hidden, value),
        "conv1d.weight": (channels, 1, 4),
        "A_log": (o.value_heads,),
        "dt_bias": (o.value_heads,),
        "norm.weight": (o.linear_dim,),
    }.items():
        yield f"{prefix}.linear_attn.{name}", shape


def _mlp(o: Options, prefix: str) -> Rows:
    def three(at: str) -> Rows:
        yield f"{at}.gate_proj.weight", (o.intermediate, o.hidden)
        yield f"{at}.up_proj.weight", (o.intermediate, o.hidden)
        yield f"{at}.down_proj.weight", (o.hidden, o.intermediate)

    if not o.experts:
        yield from three(f"{prefix}.mlp")
        return
    yield f"{prefix}.mlp.gate.weight", (o.experts, o.hidden)
    for number in range(o.experts):
        yield from three(f"{prefix}.mlp.experts.{number}")
    if o.family == "qwen3_5":
        yield from three(f"{prefix}.mlp.shared_expert")
        yield f"{prefix}.mlp.shared_expert_gate.weight", (1, o.hidden)
    if o.family == "glm4_moe":
        yield f"{prefix}.mlp.gate.e_score_correction_bias", (o.experts,)
        yield from three(f"{prefix}.mlp.shared_experts")


def layer_types(o: Options) -> list[str]:
    """Which kind of attention each layer has."""
    match o.family:
        case "qwen3_5":
            return ["full_attention" if n % 4 == 3 else "linear_attention" for n in range(o.layers)]
        case "gemma3":
            return ["full_attention" if n % 6 == 5 else "sliding_attention" for n in range(o.layers)]
        case _:
            return ["full_attention"] * o.layers


def _trunk(o: Options, vocab: int) -> Rows:
    yield "model.embed_tokens.weight", (vocab, o.hidden)
    for n, kind in enumerate(layer_types(o)):
        prefix = f"model.layers.{n}"
        yield f"{prefix}.input_layernorm.weight", (o.hidden,)
        if kind == "linear_attention":
            yield from _linear_attention(o, prefix)
        else:
            yield from _attention(
                o,
                prefix,
                gate=o.family == "qwen3_5",
                bias=o.family in ("qwen2", "glm4_moe"),
                norms=o.family in ("qwen3", "qwen3_vl", "qwen3_5", "gemma3") or o.qk_norm,
            )
        yield f"{prefix}.post_attention_layernorm.weight", (o.hidden,)
        if o.family == "gemma3":
            yield f"{prefix}.pre_feedforward_layernorm.weight", (o.hidden,)
            yield f"{prefix}.post_feedforward_layernorm.weight", (o.hidden,)
        # GLM's first layer is dense.
        dense = o.family == "glm4_moe" and n == 0
        yield from _mlp(replace(o, experts=0, intermediate=2 * o.intermediate) if dense else o, prefix)
    yield "model.norm.weight", (o.hidden,)
    if not o.tied:
        yield "lm_head.weight", (vocab, o.hidden)


def _mtp(o: Options) -> Rows:
    """The MTP head: 15 tensors when dense, 19 with fused experts; GLM's is the layer behind the trunk's."""
    if o.family == "glm4_moe":
        prefix = f"model.layers.{o.layers}"
        yield f"{prefix}.embed_tokens.weight", (o.vocab or 0, o.hidden)
        yield f"{prefix}.eh_proj.weight", (o.hidden, 2 * o.hidden)
        for name in ("enorm", "hnorm", "shared_head.norm", "input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{name}.weight", (o.hidden,)
        yield f"{prefix}.shared_head.head.weight", (o.vocab or 0, o.hidden)
        yield from _attention(o, prefix, gate=False, bias=True, norms=o.qk_norm)
        yield from _mlp(o, prefix)
        return
    yield "mtp.fc.weight", (o.hidden, 2 * o.hidden)
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        yield f"mtp.{name}.weight", (o.hidden,)
    prefix = "mtp.layers.0"
    yield f"{prefix}.input_layernorm.weight", (o.hidden,)
    yield f"{prefix}.post_attention_layernorm.weight", (o.hidden,)
    yield from _attention(o, prefix, gate=True, bias=False, norms=True)
    yield from _mlp(o, prefix)


VISION = {
    "hidden_size": 64,
    "num_heads": 4,
    "num_position_embeddings": 64,
}


SIGLIP: dict[str, Any] = {
    "hidden_size": 64,
    "image_size": 64,
    "intermediate_size": 128,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "patch_size": 8,
    "vision_use_head": False,
}


def _siglip(o: Options) -> Rows:
    """Gemma's tower and its projector."""
    keys = ("hidden_size", "intermediate_size", "patch_size", "image_size", "num_hidden_layers")
    wide, inner, patch, side, blocks = (int(SIGLIP[key]) for key in keys)
    tower = "vision_tower.vision_model"
    yield f"{tower}.embeddings.patch_embedding.weight", (wide, 3, patch, patch)
    yield f"{tower}.embeddings.patch_embedding.bias", (wide,)
    yield f"{tower}.embeddings.position_embedding.weight", ((side // patch) ** 2, wide)
    for n in range(blocks):
        block = f"{tower}.encoder.layers.{n}"
        linear = {f"self_attn.{part}_proj": (wide, wide) for part in ("q", "k", "v", "out")}
        for name, shape in {**linear, "mlp.fc1": (inner, wide), "mlp.fc2": (wide, inner)}.items():
            yield f"{block}.{name}.weight", shape
            yield f"{block}.{name}.bias", shape[:1]
        for name in ("layer_norm1", "layer_norm2"):
            yield f"{block}.{name}.weight", (wide,)
            yield f"{block}.{name}.bias", (wide,)
    yield f"{tower}.post_layernorm.weight", (wide,)
    yield f"{tower}.post_layernorm.bias", (wide,)
    yield "multi_modal_projector.mm_input_projection_weight", (wide, o.hidden)
    yield "multi_modal_projector.mm_soft_emb_norm.weight", (wide,)


def _vision(o: Options) -> Rows:
    if o.family == "gemma3":
        yield from _siglip(o)
        return
    wide, inner, merged = VISION["hidden_size"], o.vision_intermediate, 4 * VISION["hidden_size"]
    yield "model.visual.patch_embed.proj.weight", (wide, 3, 2, 16, 16)
    yield "model.visual.patch_embed.proj.bias", (wide,)
    yield "model.visual.pos_embed.weight", (VISION["num_position_embeddings"], wide)
    for n in range(o.vision_depth):
        block = f"model.visual.blocks.{n}"
        for name, rows, columns in (
            ("attn.qkv", 3 * wide, wide),
            ("attn.proj", wide, wide),
            ("mlp.linear_fc1", inner, wide),
            ("mlp.linear_fc2", wide, inner),
        ):
            yield f"{block}.{name}.weight", (rows, columns)
            yield f"{block}.{name}.bias", (rows,)
        for name in ("norm1", "norm2"):
            yield f"{block}.{name}.weight", (wide,)
            yield f"{block}.{name}.bias", (wide,)
    for name, rows, columns in (("linear_fc1", merged, merged), ("linear_fc2", o.hidden, merged)):
        yield f"model.visual.merger.{name}.weight", (rows, columns)
        yield f"model.visual.merger.{name}.bias", (rows,)
    yield "model.visual.merger.norm.weight", (wide,)
    yield "model.visual.merger.norm.bias", (wide,)
    for n in range(len(o.deepstack)):
        merger = f"model.visual.deepstack_merger_list.{n}"
        for name, shape in {
            "norm": (merged,),
            "linear_fc1": (merged, merged),
            "linear_fc2": (o.hidden, merged),
        }.items():
            yield f"{merger}.{name}.weight", shape
            yield f"{merger}.{name}.bias", shape[:1]


# --- from plain names to a checkpoint --------------------------------------------------------------------


def fuse_experts(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Stack the experts below `prefix` into `experts.gate_up_proj` [E, 2I, H] and `.down_proj` [E, H, I]."""
    out: dict[str, torch.Tensor] = {}
    groups: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for name, tensor in tensors.items():
        head, mark, rest = name.partition(".mlp.experts.")
        parts = rest.split(".")
        if not mark or not name.startswith(prefix) or not parts[0].isdecimal():
            out[name] = tensor
            continue
        groups.setdefault(f"{head}.mlp.experts", {}).setdefault(int(parts[0]), {})[parts[1]] = tensor
    for at, experts in groups.items():
        each = [experts[n] for n in sorted(experts)]
        out[f"{at}.gate_up_proj"] = torch.stack([torch.cat([e["gate_proj"], e["up_proj"]]) for e in each])
        out[f"{at}.down_proj"] = torch.stack([e["down_proj"] for e in each])
    return out


def split_experts(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The reverse of `fuse_experts`."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix) or not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            out[name] = tensor
            continue
        at, _, kind = name.rpartition(".")
        for n, matrix in enumerate(tensor):
            if kind == "down_proj":
                out[f"{at}.{n}.down_proj.weight"] = matrix.clone()
            else:
                gate, up = matrix.chunk(2)
                out[f"{at}.{n}.gate_proj.weight"] = gate.clone()
                out[f"{at}.{n}.up_proj.weight"] = up.clone()
    return out


def tensors_of(o: Options, vocab: int) -> dict[str, torch.Tensor]:
    """All tensors under the names that the checkpoint gives them."""
    centred = o.family in ("qwen3_5", "gemma3")
    dtype = DTYPES[o.dtype]
    rows = [*_trunk(o, vocab), *(_mtp(o) if o.mtp else ()), *(_vision(o) if o.vision else ())]
    out: dict[str, torch.Tensor] = {}
    for name, shape in rows:
        wide = o.float32_ssm and name.endswith(("linear_attn.A_log", "linear_attn.norm.weight"))
        wide = wide or name.endswith("e_score_correction_bias")
        out[name] = _weight(o.seed, name, shape, centred).to(torch.float32 if wide else dtype)
    if o.experts and o.expert_layout in ("fused", "turned"):
        out = fuse_experts(out, "model.")
    if o.expert_layout == "turned":
        out = {n: t.mT.contiguous() if ".mlp.experts." in n else t for n, t in out.items()}
    if o.experts and o.mtp_expert_layout == "fused":
        out = fuse_experts(out, "mtp.")
    if o.form == "wrapper":
        out = {_wrapped(name, o.family): tensor for name, tensor in out.items()}
    return out


def _wrapped(name: str, family: str) -> str:
    if family == "gemma3":
        return "language_model." + name if name.startswith(("model.", "lm_head.")) else name
    if name.startswith("model.") and not name.startswith("model.visual."):
        return "model.language_model." + name.removeprefix("model.")
    return name


# --- configs ---------------------------------------------------------------------------------------------

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
THETA = {"llama": 10000.0, "mistral": 1000000.0, "qwen2": 1000000.0, "qwen3": 1000000.0, "gemma3": 1000000.0}
LLAMA3_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def _plain_config(o: Options, vocab: int, ids: TokenizerInfo) -> dict[str, Any]:
    """config.json of the plain transformer families."""
    kind = "qwen3_moe" if o.experts else o.family
    saved = o.style == "saved"
    theta = 500000.0 if o.rope == "llama3" else THETA[o.family]
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "attention_dropout": 0.0,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos,
        "hidden_act": "silu",
        "hidden_size": o.hidden,
        "initializer_range": 0.02,
        "intermediate_size": o.intermediate,
        "max_position_embeddings": 131072 if o.rope == "llama3" else 4096,
        "model_type": "gemma3_text" if o.family == "gemma3" else kind,
        "num_attention_heads": o.heads,
        "num_hidden_layers": o.layers,
        "num_key_value_heads": o.kv_heads,
        "rms_norm_eps": 1e-05 if o.family in ("llama", "mistral") else 1e-06,
        "tie_word_embeddings": o.tied,
        "use_cache": True,
        "vocab_size": vocab,
    }
    if saved:
        config |= {"dtype": NAMES[o.dtype], "pad_token_id": ids.pad, "transformers_version": "5.17.0"}
    else:
        config |= {"torch_dtype": NAMES[o.dtype], "transformers_version": "4.51.0"}
    if saved and o.family == "gemma3":
        config["rope_parameters"] = {
            "full_attention": {"rope_theta": theta, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        }
    elif saved:
        scaling = LLAMA3_ROPE if o.rope == "llama3" else {"rope_type": "default"}
        config["rope_parameters"] = {**scaling, "rope_theta": theta}
    else:
        config["rope_theta"] = theta
        if o.family in ("llama", "qwen3", "gemma3"):
            config["rope_scaling"] = dict(LLAMA3_ROPE) if o.rope == "llama3" else None
    match o.family:
        case "llama":
            config |= {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
        case "mistral":
            config |= {"sliding_window": None}
        case "qwen2" | "qwen3":
            config |= {"sliding_window": None, "use_sliding_window": False}
            if not o.experts:
                config["max_window_layers"] = o.layers
                if saved:
                    config["layer_types"] = layer_types(o)
            if o.family == "qwen3":
                config["attention_bias"] = False
        case "gemma3":
            del config["hidden_act"]
            config |= {
                "attention_bias": False,
                "attn_logit_softcapping": None,
                "final_logit_softcapping": None,
                "hidden_activation": "gelu_pytorch_tanh",
                "pad_token_id": ids.pad,
                "query_pre_attn_scalar": o.head_dim,
                "sliding_window": 512,
            }
            if saved:
                config |= {
                    "_sliding_window_pattern": 6,
                    "layer_types": layer_types(o),
                    "use_bidirectional_attention": False,
                }
            else:
                config |= {
                    "cache_implementation": "hybrid",
                    "rope_local_base_freq": 10000,
                    "sliding_window_pattern": 6,
                }
    if o.family in ("qwen3", "gemma3") or (saved and o.family in ("llama", "mistral")) or o.rope == "llama3":
        config["head_dim"] = o.head_dim
    if o.experts:
        config |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": o.intermediate,
            "intermediate_size": 3 * o.intermediate,
            "norm_topk_prob": True,
            "num_experts_per_tok": o.experts_per_token,
            "num_local_experts" if saved else "num_experts": o.experts,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
        }
    return dict(sorted(config.items()))


def _gemma_config(o: Options, vocab: int, ids: TokenizerInfo) -> dict[str, Any]:
    """config.json of Gemma 3's published wrapper, which leaves out much of what equals a default."""
    text = _plain_config(o, vocab, ids)
    if o.form == "flat":
        return text
    left_out = ("architectures", "torch_dtype", "transformers_version", "rms_norm_eps", "rope_theta")
    left_out = (*left_out, "rope_local_base_freq", "tie_word_embeddings")
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 5,
        "eoi_token_index": 6,
        "image_token_index": 7,
        "mm_tokens_per_image": 16,
        "model_type": "gemma3",
        "text_config": {key: value for key, value in text.items() if key not in left_out},
        "torch_dtype": NAMES[o.dtype],
        "transformers_version": "4.51.0",
        "vision_config": dict(SIGLIP),
    }


def _qwen3_5_text_config(o: Options, vocab: int, ids: TokenizerInfo) -> dict[str, Any]:
    saved = o.style == "saved"
    third = -(-o.head_dim // 4 // 6)  # a quarter of the head is rotated; [11, 11, 10] at the published 256
    section = [third, third, o.head_dim // 8 - 2 * third]
    config: dict[str, Any] = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": NAMES[o.dtype],
        "eos_token_id": ids.pad,
        "head_dim": o.head_dim,
        "hidden_act": "silu",
        "hidden_size": o.hidden,
        "initializer_range": 0.02,
        "layer_types": layer_types(o),
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": o.linear_dim,
        "linear_num_key_heads": o.key_heads,
        "linear_num_value_heads": o.value_heads,
        "linear_value_head_dim": o.linear_dim,
        "max_position_embeddings": 4096,
        "model_type": "qwen3_5_moe_text" if o.experts else "qwen3_5_text",
        "num_attention_heads": o.heads,
        "num_hidden_layers": o.layers,
        "num_key_value_heads": o.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": section,
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "tie_word_embeddings": o.tied,
        "use_cache": True,
        "vocab_size": vocab,
    }
    if o.experts:
        config |= {
            "moe_intermediate_size": o.intermediate,
            "num_experts": o.experts,
            "num_experts_per_tok": o.experts_per_token,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
            "shared_expert_intermediate_size": o.intermediate,
        }
    else:
        config["intermediate_size"] = o.intermediate
    if saved:
        config |= {"bos_token_id": None, "pad_token_id": ids.pad, "partial_rotary_factor": 0.25}
    else:
        config |= {"attn_output_gate": True, "full_attention_interval": 4, "mamba_ssm_dtype": "float32"}
    if o.mtp:
        config |= {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False}
    return dict(sorted(config.items()))


def _qwen3_5_config(o: Options, vocab: int, ids: TokenizerInfo) -> dict[str, Any]:
    name = "Qwen3_5Moe" if o.experts else "Qwen3_5"
    text = _qwen3_5_text_config(o, vocab, ids)
    version = "5.17.0" if o.style == "saved" else "4.57.0.dev0"
    if o.form == "flat":
        return {"architectures": [f"{name}ForCausalLM"], **text, "transformers_version": version}
    base = "qwen3_5_moe" if o.experts else "qwen3_5"
    config: dict[str, Any] = {
        "architectures": [f"{name}ForConditionalGeneration"],
        "image_token_id": ids.ids["<|image_pad|>"],
        "model_type": base,
        "text_config": text,
        "tie_word_embeddings": o.tied,
        "transformers_version": version,
        "video_token_id": ids.ids["<|video_pad|>"],
        "vision_end_token_id": ids.ids["<|vision_end|>"],
        "vision_start_token_id": ids.ids["<|vision_start|>"],
    }
    if o.vision:
        config["vision_config"] = {
            "depth": o.vision_depth,
            "hidden_size": VISION["hidden_size"],
            "intermediate_size": o.vision_intermediate,
            **VISION,
            "deepstack_visual_indexes": list(o.deepstack),
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "initializer_range": 0.02,
            "model_type": f"{base}_vision" if o.style == "saved" else base,
            "out_hidden_size": o.hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }
        if o.style == "saved":
            del config["vision_config"]["deepstack_visual_indexes"]
            config["vision_config"] |= {
                "dtype": NAMES[o.dtype],
                "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
            }
    if o.style == "saved":
        config["dtype"] = NAMES[o.dtype]
    return dict(sorted(config.items()))


def _qwen3_vl_config(o: Options, vocab: int, ids: TokenizerInfo) -> dict[str, Any]:
    """config.json as published: Qwen3.5's form, with the older spelling of RoPE."""
    half = o.head_dim // 2
    low = half * 5 // 16
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids.pad,
        "dtype": NAMES[o.dtype],
        "eos_token_id": ids.eos,
        "head_dim": o.head_dim,
        "hidden_act": "silu",
        "hidden_size": o.hidden,
        "initializer_range": 0.02,
        "intermediate_size": o.intermediate,
        "max_position_embeddings": 4096,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": o.heads,
        "num_hidden_layers": o.layers,
        "num_key_value_heads": o.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [half - 2 * low, low, low],
            "rope_type": "default",
        },
        "rope_theta": 5000000,
        "tie_word_embeddings": o.tied,
        "use_cache": True,
        "vocab_size": vocab,
    }
    around = _qwen3_5_config(replace(o, style="published", experts=0), vocab, ids)
    name, word = ("Qwen3VLMoe", "qwen3_vl_moe") if o.experts else ("Qwen3VL", "qwen3_vl")
    if o.experts:
        text |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "model_type": "qwen3_vl_moe_text",
            "moe_intermediate_size": o.intermediate,
            "norm_topk_prob": True,
            "num_experts": o.experts,
            "num_experts_per_tok": o.experts_per_token,
        }
    around["vision_config"]["model_type"] = word
    own = {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": word,
        "text_config": text,
    }
    return {**around, **own}


def _glm_config(o: Options, vocab: int, ids: TokenizerInfo) -> dict[str, Any]:
    saved = o.style == "saved"
    config: dict[str, Any] = {
        "architectures": ["Glm4MoeForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": [ids.ids[text] for text in ("<|endoftext|>", "<|user|>", "<|observation|>")],
        "first_k_dense_replace": 1,
        "head_dim": o.head_dim,
        "hidden_act": "silu",
        "hidden_size": o.hidden,
        "initializer_range": 0.02,
        "intermediate_size": 2 * o.intermediate,
        "max_position_embeddings": 4096,
        "model_type": "glm4_moe",
        "moe_intermediate_size": o.intermediate,
        "n_group": 1,
        "n_routed_experts": o.experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": o.heads,
        "num_experts_per_tok": o.experts_per_token,
        "num_hidden_layers": o.layers,
        "num_key_value_heads": o.kv_heads,
        "num_nextn_predict_layers": int(o.mtp),
        "pad_token_id": ids.pad,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05,
        "routed_scaling_factor": 1.5,
        "tie_word_embeddings": o.tied,
        "topk_group": 1,
        "use_cache": True,
        "use_qk_norm": o.qk_norm,
        "vocab_size": vocab,
    }
    rope = {"rope_theta": 1000000.0}
    if saved:
        config |= {
            "bos_token_id": None,
            "dtype": NAMES[o.dtype],
            "rope_parameters": {**rope, "partial_rotary_factor": 0.5, "rope_type": "default"},
            "transformers_version": "5.17.0",
        }
    else:
        config |= {
            **rope,
            "rope_scaling": None,
            "torch_dtype": NAMES[o.dtype],
            "transformers_version": "4.54.0",
        }
    return dict(sorted(config.items()))


def _generation_config(o: Options, ids: TokenizerInfo) -> dict[str, Any]:
    if o.style == "saved":
        config: dict[str, Any] = {
            "_from_model_config": True,
            "bos_token_id": ids.bos,
            "eos_token_id": ids.eos,
            "output_attentions": False,
            "output_hidden_states": False,
            "pad_token_id": ids.pad,
            "transformers_version": "5.17.0",
            "use_cache": True,
        }
        return {k: v for k, v in config.items() if v is not None}
    if o.tokenizer.startswith("qwen"):
        return {
            "bos_token_id": ids.pad,
            "do_sample": True,
            "eos_token_id": [ids.eos, ids.pad],
            "pad_token_id": ids.pad,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "transformers_version": "4.57.0.dev0",
        }
    config = {"bos_token_id": ids.bos, "eos_token_id": ids.eos, "transformers_version": "4.51.0"}
    if o.tokenizer == "gemma":
        turn = ids.ids["<end_of_turn>"]
        config |= {"eos_token_id": [ids.eos, turn], "pad_token_id": ids.pad, "do_sample": True, "top_k": 64}
    return config


PROCESSOR = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": 2,
    "patch_size": 16,
    "processor_class": "Qwen3VLProcessor",
    "size": {"longest_edge": 65536, "shortest_edge": 4096},
    "temporal_patch_size": 2,
}


# --- the zoo ---------------------------------------------------------------------------------------------

_QWEN35 = Options(
    family="qwen3_5",
    tokenizer="qwen35",
    form="wrapper",
    layers=4,
    vocab=448,
    mtp=True,
    vision=True,
    float32_ssm=True,
)
_QWEN35_MOE = replace(_QWEN35, experts=4, intermediate=256, expert_layout="fused", mtp_expert_layout="fused")
_SAVED = {"style": "saved", "form": "flat", "mtp": False, "vision": False}

_GLM = Options(
    family="glm4_moe", tokenizer="glm", vocab=448, experts=6, intermediate=256, mtp=True, qk_norm=True
)

ZOO: dict[str, Entry] = {
    "qwen3_5": Entry(
        replace(_QWEN35, shards=2),
        pre="qwen35",
        note="published wrapper: vision tower, MTP head of 15 tensors, A_log in float32, two shards",
    ),
    "qwen3_5_text": Entry(
        replace(_QWEN35, **_SAVED, float32_ssm=False),
        convert_flags=("--no-mtp",),
        pre="qwen35",
        note="the same weights as transformers 5.17 saves a merge: flat, no head, key absent, all bfloat16",
    ),
    "qwen3_5_tied": Entry(
        replace(_QWEN35, tied=True, hidden=320, intermediate=544, value_heads=6),
        pre="qwen35",
        note="tied; no row length is a multiple of 256, so every K-quant falls back",
    ),
    "qwen3_5_moe": Entry(
        _QWEN35_MOE, pre="qwen35", note="published wrapper, experts fused in trunk and MTP head (19 tensors)"
    ),
    "qwen3_5_moe_text": Entry(
        replace(_QWEN35_MOE, **_SAVED, float32_ssm=False, expert_layout="each"),
        convert_flags=("--no-mtp",),
        pre="qwen35",
        note="as transformers 5.17 saves it: flat names, experts one by one, no head",
    ),
    "qwen3_5_moe_122b": Entry(
        replace(_QWEN35_MOE, mtp_expert_layout="each"),
        pre="qwen35",
        note="trunk experts fused, MTP experts one by one, as Qwen3.5-122B-A10B has them",
    ),
    "llama": Entry(
        Options(family="llama", tokenizer="llama2", dtype="fp16", heads=8, kv_heads=8, head_dim=32, shards=2),
        note="Llama 2 style: float16, SentencePiece, no grouped attention, old config keys",
    ),
    "llama3": Entry(
        Options(
            family="llama",
            tokenizer="llama3",
            style="saved",
            rope="llama3",
            heads=8,
            kv_heads=2,
            head_dim=32,
            tied=True,
        ),
        pre="llama-bpe",
        note="llama3 rope scaling (rope_freqs tensor), tied, four query heads per key head",
    ),
    "smollm": Entry(
        Options(
            family="llama",
            tokenizer="smollm",
            hidden=288,
            intermediate=720,
            heads=9,
            kv_heads=3,
            head_dim=32,
            tied=True,
        ),
        pre="smollm",
        note="rows of 288 (divisible by 32, not 256) and 720 (neither): legacy and F16 fallbacks",
    ),
    "mistral": Entry(
        Options(family="mistral", tokenizer="llama2", layers=17, intermediate=256, heads=4, kv_heads=1),
        note="17 layers, so that the more-bits pattern shows",
    ),
    "qwen2": Entry(
        Options(family="qwen2", tokenizer="qwen2", vocab=416, dtype="fp32"),
        pre="qwen2",
        note="q/k/v biases, float32",
    ),
    "qwen3": Entry(
        Options(family="qwen3", tokenizer="qwen2", style="saved", vocab=416, heads=8, tied=True),
        pre="qwen2",
        note="q/k norms, heads wider than hidden, tied",
    ),
    "qwen3_moe": Entry(
        Options(family="qwen3", tokenizer="qwen2", vocab=416, experts=8, intermediate=256),
        pre="qwen2",
        note="eight experts one by one (llama-quantize has rules for exactly eight)",
    ),
    "glm4_moe": Entry(
        _GLM,
        pre="glm4",
        note="a dense layer, two of experts with a biased sigmoid router, a head in layer 3 with copies of "
        "embedding and output, norms of q and k",
    ),
    "glm4_moe_air": Entry(
        replace(_GLM, style="saved", mtp=False, qk_norm=False),
        convert_flags=("--no-mtp",),
        pre="glm4",
        note="as transformers 5.17 saves it: no head, none declared; no norms of q and k",
    ),
    "qwen3_vl": Entry(
        Options(
            family="qwen3_vl",
            tokenizer="qwen2",
            form="wrapper",
            vocab=416,
            vision=True,
            vision_depth=4,
            deepstack=(1, 3),
        ),
        pre="qwen2",
        note="a tower of four blocks, the output of two of which goes into the language model (deepstack)",
    ),
    "qwen3_vl_moe": Entry(
        Options(
            family="qwen3_vl",
            tokenizer="qwen2",
            form="wrapper",
            vocab=416,
            experts=4,
            expert_layout="turned",
            vision=True,
            deepstack=(0,),
        ),
        pre="qwen2",
        note="its experts transposed, as published",
    ),
    "gemma3": Entry(
        Options(family="gemma3", tokenizer="gemma", layers=6, tied=True),
        note="five sliding layers and a full one, four norms a layer, tied, SentencePiece",
    ),
}


def options_of(name: str, **changes: Any) -> Options:
    """The entry's options with some changed; an unknown name says which there are."""
    if name not in ZOO:
        raise ValueError(f"no zoo entry {name!r}; there are {', '.join(ZOO)}")
    known = {f.name for f in fields(Options)}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"no zoo option {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return replace(ZOO[name].options, **changes)


def build(name: str, out: Path, **options: Any) -> Path:
    """Write checkpoint `name` into the folder `out` (made if needed) and return it."""
    o = options_of(name, **options)
    out.mkdir(parents=True, exist_ok=True)
    ids = zoo_tokenizers.write(o.tokenizer, out, o.style)
    vocab = o.vocab or ids.size
    makers = {
        "qwen3_5": _qwen3_5_config,
        "qwen3_vl": _qwen3_vl_config,
        "glm4_moe": _glm_config,
        "gemma3": _gemma_config,
    }
    make = makers.get(o.family, _plain_config)
    config = make(o, vocab, ids)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", _generation_config(o, ids))
    if o.vision:
        siglip = {"image_processor_type": "Gemma3ImageProcessor", "image_seq_length": 16}
        own = siglip if o.family == "gemma3" else {}
        write_json(out / "preprocessor_config.json", {**PROCESSOR, **own})
    if o.vision and o.family != "gemma3":
        video = {**PROCESSOR, "video_processor_type": "Qwen3VLVideoProcessor"}
        del video["image_processor_type"]
        write_json(out / "video_preprocessor_config.json", video)
    write_tensors(out, tensors_of(o, vocab), o.shards)
    return out


def write_json(path: Path, value: Any) -> None:
    """JSON as transformers writes it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(out: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    """One `model.safetensors`, or `shards` files of about the same number of tensors with an index."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for n in range(shards):
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        part = names[n * len(names) // shards : (n + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(out / "model.safetensors.index.json", index)
