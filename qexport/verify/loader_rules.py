"""What a config makes a loader expect of each module: the rules of those who read the folder, as functions.

Loaders build a model from the config first and then pour tensors in; of what does not fit, many say nothing
(vLLM casts a bf16 matrix into FP8 codes and leaves the scales as they were). So the question is what the
config promises, asked the way the reader asks it:

==================  ====================================================================================
native FP8          vLLM: a linear layer is FP8 unless its full path is listed; a listed name that contains
                    the experts' path keeps all of them
compressed-tensors  ``ignore`` by exact name or ``re:`` (matched from the start), else the first group whose
                    target fits; transformers asks with the names in the file, vLLM with its own
ModelOpt            vLLM: excluded by exact name, by containing the entry (!), or by glob, with fused layers
                    asked under their fused names; MIXED_PRECISION quantizes what it lists and nothing else
MLX                 overrides by path, else the settings for all
==================  ====================================================================================

https://github.com/vllm-project/vllm/tree/main/vllm/model_executor/layers/quantization (fp8.py,
compressed_tensors/, modelopt.py) and https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from qexport.artifacts.artifact import Artifact, Kind
from qexport.artifacts.forms import Form
from qexport.errors import InputError
from qexport.families.roles import EXPERT_ROLES, Role
from qexport.formats.linears import LINEAR_ROLES


@dataclass(frozen=True)
class Asked:
    """A module that a loader asks about.

    Attributes:
        module: its path in the folder.
        role: in the family; ``VISION`` for a linear layer of the vision tower.
    """

    module: str
    role: Role


# The form that is expected; ``None``: floats. A text: readers will not agree, or refuse.
Promise = Form | str | None
_ASKED = LINEAR_ROLES | {
    Role.LINEAR_A,
    Role.LINEAR_B,
    Role.MTP_FC,
    Role.ROUTER,
    Role.SHARED_EXPERT_ROUTER,
    Role.VISION,
}
_FUSED = {
    Role.ATTN_Q: "qkv_proj",
    Role.ATTN_K: "qkv_proj",
    Role.ATTN_V: "qkv_proj",
    Role.FFN_GATE: "gate_up_proj",
    Role.FFN_UP: "gate_up_proj",
    Role.SHARED_EXPERT_GATE: "gate_up_proj",
    Role.SHARED_EXPERT_UP: "gate_up_proj",
    Role.LINEAR_QKV: "in_proj_qkvz",
    Role.LINEAR_Z: "in_proj_qkvz",
    Role.LINEAR_A: "in_proj_ba",
    Role.LINEAR_B: "in_proj_ba",
}
_FP8_PER = {"tensor": "matrix", "channel": "row", "block": "tile"}
_ALGORITHMS = {
    "FP8": Form("fp8", 8, per="matrix"),
    "FP8_PER_CHANNEL_PER_TOKEN": Form("fp8", 8, per="row"),
    "FP8_PB_WO": Form("fp8", 8, per="tile"),
    "FP8_BLOCK_SCALES": Form("fp8", 8, per="tile"),
    "NVFP4": Form("nvfp4", 4, 16),
    "NVFP4_AWQ": Form("nvfp4", 4, 16),
    "W4A16_NVFP4": Form("nvfp4", 4, 16),
}


def promises(artifact: Artifact) -> Callable[[Asked], Promise]:
    """The rule of this artifact's readers.

    Raises:
        InputError: the config declares something that qexport does not know.
    """
    quantization = artifact.details.get("quantization") or {}
    match artifact.kind:
        case Kind.FP8:
            return lambda asked: _native_fp8(asked, quantization)
        case Kind.COMPRESSED_TENSORS:
            return lambda asked: _compressed(asked, quantization)
        case Kind.MODELOPT:
            declared = _modelopt_config(quantization, artifact.details.get("modelopt"))
            return lambda asked: _modelopt(asked, declared)
        case Kind.MLX:
            head = (artifact.details.get("head") or {}).get("quantization") or {}
            return lambda asked: _mlx(asked, quantization, head)
        case _:
            return lambda asked: None


def _native_fp8(asked: Asked, quantization: Mapping[str, Any]) -> Promise:
    if asked.role not in _ASKED:
        return None
    listed = quantization.get("ignored_layers") or quantization.get("modules_to_not_convert") or []
    if asked.role in EXPERT_ROLES:
        stack = _stack(asked.module)
        skipped = any("experts" in name and stack in name for name in listed)
    else:
        skipped = asked.module in listed
    return None if skipped else Form("fp8", 8, per="tile")


def _compressed(asked: Asked, quantization: Mapping[str, Any]) -> Promise:
    if asked.role not in _ASKED | {Role.OUTPUT}:
        return None
    ignore = quantization.get("ignore") or []
    answers = {_matches(name, ignore) for name in (asked.module, _vllm(asked.module))}
    if len(answers) > 1:
        return "ignored under the name that transformers asks with and not under vLLM's, or the other way"
    if answers == {True}:
        return None
    for group in (quantization.get("config_groups") or {}).values():
        targets = group.get("targets") or []
        if "Linear" in targets or _matches(asked.module, targets):
            return _compressed_form(group.get("weights") or {})
    return None


def _compressed_form(weights: Mapping[str, Any]) -> Form:
    kind, bits, strategy = weights.get("type"), weights.get("num_bits"), weights.get("strategy")
    if kind == "float" and bits == 8 and strategy in _FP8_PER:
        return Form("fp8", 8, per=_FP8_PER[strategy])
    if kind == "float" and bits == 4 and strategy == "tensor_group":
        return Form("nvfp4", 4, int(weights.get("group_size") or 16))
    raise InputError(
        f"quantization_config: {bits} bits of {kind!r}, strategy {strategy!r}, is not known here"
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(
        re.match(pattern[3:], name) is not None if pattern.startswith("re:") else pattern == name
        for pattern in patterns
    )


def _modelopt_config(quantization: Mapping[str, Any], file: Mapping[str, Any] | None) -> dict[str, Any]:
    """One form of the two in which it is declared: algorithm, exclusions, and algorithms by layer."""
    inner = (file or {}).get("quantization") or {}
    return {
        "algo": quantization.get("quant_algo") or inner.get("quant_algo"),
        "exclude": quantization.get("ignore", inner.get("exclude_modules")) or [],
        "layers": quantization.get("quantized_layers") or inner.get("quantized_layers") or {},
    }


def _modelopt(asked: Asked, declared: Mapping[str, Any]) -> Promise:
    if asked.role not in _ASKED | {Role.OUTPUT} or asked.role in (Role.ROUTER, Role.SHARED_EXPERT_ROUTER):
        return None
    if asked.role is Role.MTP_FC:  # vLLM keeps it whatever the config says, and SGLang the whole head
        return None
    if _excluded(asked, declared["exclude"]):
        return None
    algo = declared["algo"]
    if algo == "MIXED_PRECISION":
        layers = declared["layers"]
        entry = layers.get(asked.module) or layers.get(_stack(asked.module))
        if entry is None:
            return None
        algo = entry.get("quant_algo")
    if algo not in _ALGORITHMS:
        raise InputError(f"quant_algo {algo!r} is not known here", hint=f"Known: {', '.join(_ALGORITHMS)}.")
    return _ALGORITHMS[algo]


def _excluded(asked: Asked, exclude: Iterable[str]) -> bool:
    """vLLM's ``is_layer_excluded``: exact by the layer's own name, then part and glob by the fused one."""
    patterns = [part for name in exclude for part in _split_glob(name)]
    if asked.module in patterns:
        return True
    parent, _, _ = asked.module.rpartition(".")
    name = f"{parent}.{_FUSED[asked.role]}" if asked.role in _FUSED else asked.module
    if asked.role in EXPERT_ROLES:
        name = _stack(asked.module)
    names = (name, _vllm(name))
    return any(
        pattern in each or fnmatch(each, _vllm(pattern)) or _vllm(pattern) in each
        for pattern in patterns
        for each in names
    )


def _split_glob(name: str) -> tuple[str, ...]:
    """``X*`` is looked up as ``X`` and ``X.*``."""
    stem = name.removesuffix("*").removesuffix(".")
    return (stem, f"{stem}.*") if name.endswith("*") and "*" not in stem else (name,)


def _mlx(asked: Asked, trunk: Mapping[str, Any], head: Mapping[str, Any]) -> Promise:
    """What the config says of the module, in case it is quantized: MLX goes by the scales being there."""
    name, settings = asked.module, trunk
    if head and name.startswith("mtp."):
        name, settings = name.removeprefix("mtp."), head
    found = settings.get(name)
    if found is False:
        return None
    found = {**settings, **found} if isinstance(found, Mapping) else settings
    if isinstance(settings.get(name), Mapping) and "mode" not in settings[name]:
        found = {**found, "mode": "affine"}
    if not isinstance(found.get("bits"), int) or not isinstance(found.get("group_size"), int):
        return None
    return Form(str(found.get("mode") or "affine"), found["bits"], found["group_size"])


def _stack(module: str) -> str:
    """The experts that a module is one of."""
    before, mark, _ = module.partition(".mlp.experts")
    return before + mark


def _vllm(module: str) -> str:
    """The path under which vLLM asks: its multimodal model wraps the language model the other way round."""
    for theirs, ours in (
        ("model.language_model.", "language_model.model."),
        ("model.visual.", "visual."),
    ):
        if module.startswith(theirs):
            return ours + module.removeprefix(theirs)
    return module
