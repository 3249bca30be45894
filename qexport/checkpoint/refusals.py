"""Checkpoints that look like a model and are not one to export from: told apart, each with its way out.

qexport starts from merged bf16, fp16 or fp32 safetensors. Pickles run code when they are opened, an adapter
is not a model, and a quantized checkpoint has already lost what quantizing it again would need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, NoReturn

from qexport.checkpoint.config import parse_json, text_config
from qexport.checkpoint.tensors import FLOAT_DTYPES, StoredTensor
from qexport.errors import InputError, some

_PICKLES = ("pytorch_model*.bin", "model*.bin", "*.pt", "*.pth", "*.ckpt")
_ADAPTERS = ("adapter_*", "adapters.*", "*_adapters.safetensors", "adapter.safetensors")
# DeepSpeed's own files: the script that gathers, and the parts that it gathers from.
_ZERO = ("zero_to_fp32.py", "*_optim_states.pt", "*mp_rank_*_model_states.pt")
# What a trainer leaves beside its weights; pickles too, but no weights.
_TRAINER = ("optimizer*", "scheduler*", "scaler*", "rng_state*", "training_args*")
# Where ModelOpt, AutoGPTQ and AutoAWQ declare a scheme; the config keys of transformers, MLX and older
# compressed-tensors.
_SCHEME_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
SCHEME_KEYS = ("quantization_config", "quantization", "compression_config")
# Companions of codes that are themselves stored as floats.
_SCALES = (".weight_scale", ".weight_scale_inv", ".weight_global_scale", ".scales", ".qzeros", ".absmax")
# Names that packed values and their scales go by: GPTQ/AWQ, compressed-tensors, MLX, gpt-oss, bitsandbytes.
_PACKED = (".qweight", ".weight", ".weight_packed", ".biases", "_blocks", "_scales", *_SCALES[-3:])
_SOURCE = (
    "Export from the bf16 source: quantizing twice loses quality. A folder of FP8, NVFP4, AWQ or GPTQ is "
    "proven as it is by `qexport verify`, and given head and tower by `qexport adopt`."
)


def declared_scheme(label: str, listing: Mapping[str, int], read: Callable[[str], bytes]) -> str | None:
    """How the config files declare a quantization, if they do.

    A merge on a quantized base keeps the declaration, though the weights are bf16 again. So it decides
    nothing: where weights are packed, the tensors give them away (:func:`refuse_dtypes`).
    ``read`` is asked for ``config.json`` only.
    """
    found = next((f"it has a {name}" for name in _SCHEME_FILES if name in listing), None)
    if "config.json" not in listing:
        return found
    config = parse_json(read("config.json"), f"{label}: config.json")
    text_config(config)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in SCHEME_KEYS:
            if part.get(key):
                return f"config.json has {key}{_scheme(part[key])}"
    return found


def refuse_without_weights(label: str, listing: Mapping[str, int]) -> NoReturn:
    """Raise InputError that says what a folder without safetensors weights holds instead."""
    top = [name for name in listing if "/" not in name]
    if "adapter_config.json" in top or any(is_adapter(name) for name in top):
        mlx = any("adapters." in name for name in top)
        raise InputError(
            f"{label} is a LoRA adapter, not a model.",
            hint="Merge it first: `mlx_lm.fuse --model BASE --adapter-path FOLDER --save-path OUT`."
            if mlx
            else "Merge it first: PeftModel.from_pretrained(base, adapter).merge_and_unload(), then "
            "save_pretrained(folder), and give that folder.",
        )
    pickles = [name for name in top if _any(name, _PICKLES) and not _any(name, (*_TRAINER, *_ZERO))]
    if not pickles and any(_any(name, _ZERO) for name in top):
        raise InputError(
            f"{label} is a checkpoint of DeepSpeed's training: its weights lie in parts.",
            hint="Gather them: `python zero_to_fp32.py . out --safe_serialization` in that folder; or train "
            "and save with `stage3_gather_16bit_weights_on_model_save: true`.",
        )
    if any(name.endswith(".distcp") for name in top):
        raise InputError(
            f"{label} is a checkpoint of FSDP's training: its weights lie in parts.",
            hint="Gather them with `accelerate merge-weights FOLDER OUT`, or train with "
            "`fsdp_state_dict_type: FULL_STATE_DICT`.",
        )
    if own := [name for name in pickles if name.startswith("consolidated.")]:
        raise _mistral_layout(label, own[0])
    if pickles:
        raise InputError(
            f"{label} has its weights as pickles only ({pickles[0]}), which can run code when opened.",
            hint="If you trust them, convert with safetensors: AutoModelForCausalLM.from_pretrained(model, "
            "dtype='auto').save_pretrained(folder), and copy the tokenizer files too.",
        )
    if any(name.lower().endswith(".gguf") for name in top):
        hint = "Give the safetensors checkpoint that the GGUF was made from."
        raise InputError(f"{label} has GGUF files only, which are an output here, not an input.", hint=hint)
    hint = "Give the folder or Hub repository that holds config.json and *.safetensors."
    raise InputError(f"{label} has no weights: there is no safetensors file in it.", hint=hint)


def refuse_mistral_layout(label: str, weights: Sequence[str], listing: Mapping[str, int]) -> None:
    """Refuse weights in the layout of Mistral's own code, where nothing else is there."""
    if "params.json" in listing and all(name.startswith("consolidated") for name in weights):
        raise _mistral_layout(label, weights[0])


def is_adapter(name: str) -> bool:
    """Whether the file holds an adapter: PEFT's ``adapter_model.*``, mlx-lm's ``adapters.safetensors``."""
    return _any(name, _ADAPTERS)


def _mistral_layout(label: str, file: str) -> InputError:
    return InputError(
        f"{label} has its weights in the layout of Mistral's or Meta's own code ({file}).",
        hint="Download the transformers layout too (config.json, model*.safetensors), which most of these "
        "repositories have, or convert: transformers' convert_mistral_weights_to_hf.py or "
        "convert_llama_weights_to_hf.py.",
    )


def refuse_dtypes(label: str, tensors: Mapping[str, StoredTensor], declared: str | None = None) -> None:
    """Refuse tensors that are not bf16, fp16 or fp32, packed or 8-bit weights and stray integers apart.

    Args:
        declared: how config files declare a quantization.
    """
    others = [tensor for tensor in tensors.values() if tensor.dtype not in FLOAT_DTYPES]
    scales = [name for name in tensors if name.endswith(_SCALES)]
    if not others and declared and scales:
        raise InputError(f"{label} is already quantized: {declared}, and there is {scales[0]}.", hint=_SOURCE)
    if not others:
        return
    packed = [t for t in others if t.dtype.startswith("F8") or t.name.endswith(_PACKED)]
    # A float64 weight is wide, not packed.
    packed = [t for t in packed if t.dtype not in ("F64", "BOOL")]
    if packed:
        what = f"{declared}, and " if declared else ""
        what += f"{packed[0].name} is {packed[0].dtype}"
        raise InputError(f"{label} is already quantized: {what} ({len(packed)} such tensors).", hint=_SOURCE)
    names = some([f"{tensor.name} ({tensor.dtype})" for tensor in others])
    hint = "Save the model again in bfloat16, without buffers of other types."
    raise InputError(f"{label} has tensors that are not BF16, F16 or F32: {names}.", hint=hint)


def _scheme(value: Any) -> str:
    """The scheme's name in brackets, where the declaration gives one."""
    if isinstance(value, dict):
        for key in ("quant_method", "quant_algo", "bits"):
            if key in value:
                return f" ({key}: {value[key]!s:.40})"
    return ""


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
