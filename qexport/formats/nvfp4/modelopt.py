"""ModelOpt's declarations: ``quantization_config`` in config.json, and hf_quant_config.json, saying the same.

A folder with one algorithm (``W4A16_NVFP4``, or ``NVFP4``: W4A4) lists what is *not* quantized. Readers match
that list in different ways, so every entry is one that all understand alike:

* vLLM looks for an equal path (fused layers by their parts), then for the entry anywhere inside a path, then
  for a glob; ``X*`` is first split into ``X`` and ``X.*``. A dense model must not list ``...mlp.gate``: it is
  inside ``...mlp.gate_up_proj``. Only routers that exist are listed.
  (https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/layers/quantization/modelopt.py)
* SGLang looks for a path or a part of one between dots, then for a glob over the path or one of its parts.
  (https://github.com/sgl-project/sglang/blob/main/python/sglang/srt/layers/quantization/modelopt_quant.py)

The MTP head is its first layer's path and its own as globs, as in NVIDIA's releases (``mtp.layers.0*``,
``mtp*``); the first alone leaves its projection to special cases in readers. A folder of two algorithms
(``MIXED_PRECISION``) lists what *is* quantized, all experts of a layer under one key; excluded are the MTP
head, and experts that are not quantized, for which vLLM would look among their neighbours.

``producer``: vLLM takes hf_quant_config.json of a mixed folder only from a producer called ``modelopt``, and
SGLang looks for a name that begins so. So the name is the layout's, and the version says who wrote it: that
of the ModelOpt whose layout this is, with qexport's as its local part.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from qexport import __version__
from qexport.families.names import published_name
from qexport.families.roles import EXPERT_ROLES, Block, Role
from qexport.formats.fp8.scope import FP8
from qexport.formats.linears import LINEAR_ROLES, modules_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor, ModelView


PRODUCER = {"name": "modelopt", "version": f"0.47.0+qexport.{__version__}"}
MODULE_ROLES = LINEAR_ROLES | {
    Role.LINEAR_A,
    Role.LINEAR_B,
    Role.LINEAR_CONV,
    Role.ROUTER,
    Role.SHARED_EXPERT_ROUTER,
    Role.TOKEN_EMBD,
}
"""What runtimes build as a layer that could be quantized, besides ``lm_head``."""

_GROUP = 16
_FP8 = {"quant_algo": "FP8"}
MODELOPT_WORDS = {"NVFP4A16": "W4A16_NVFP4", "NVFP4": "NVFP4"}
"""ModelOpt's names of llm-compressor's schemes."""


def modelopt_file(
    repaired: Repaired, view: ModelView, chosen: Mapping[str, str], word: str
) -> dict[str, Any]:
    """hf_quant_config.json; ``word``: ModelOpt's name for what is NVFP4."""
    return {"producer": PRODUCER, "quantization": _quantization(repaired, view, chosen, word)}


def modelopt_config(
    repaired: Repaired, view: ModelView, chosen: Mapping[str, str], word: str
) -> dict[str, Any]:
    """``quantization_config``: the same in the other spelling, as ModelOpt's own converter gives it."""
    inner = _quantization(repaired, view, chosen, word)
    groups: dict[str, Any]
    if "quantized_layers" in inner:
        by_algo: dict[str, list[str]] = defaultdict(list)
        for module, settings in inner["quantized_layers"].items():
            by_algo[settings["quant_algo"]].append(module)
        groups = {
            f"group_{number}": {**_NUMBERS[algo], "targets": sorted(modules)}
            for number, (algo, modules) in enumerate(by_algo.items())
        }
        layers = {"quantized_layers": inner["quantized_layers"]}
    else:
        groups = {"group_0": {**_NUMBERS[word], "targets": ["Linear"]}}
        layers = {}
    return {
        "config_groups": groups,
        **layers,
        "ignore": inner["exclude_modules"],
        "quant_algo": inner["quant_algo"],
        "producer": PRODUCER,
        "quant_method": "modelopt",
    }


_FLOAT8 = {"dynamic": False, "num_bits": 8, "type": "float"}
_FLOAT4 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": _GROUP}
_NUMBERS: Mapping[str, Mapping[str, Any]] = {
    "FP8": {"input_activations": _FLOAT8, "weights": _FLOAT8},
    "W4A16_NVFP4": {"weights": _FLOAT4},
    "NVFP4": {"input_activations": _FLOAT4, "weights": _FLOAT4},
}


def _quantization(
    repaired: Repaired, view: ModelView, chosen: Mapping[str, str], word: str
) -> dict[str, Any]:
    if FP8 not in chosen.values():
        return {
            "quant_algo": word,
            "kv_cache_quant_algo": None,
            "group_size": _GROUP,
            "exclude_modules": excluded(repaired, view, chosen),
        }
    layers: dict[str, Any] = {}
    nvfp4 = {"quant_algo": word, "group_size": _GROUP}
    for tensor in view:
        if tensor.name in chosen:
            settings = _FP8 if chosen[tensor.name] == FP8 else nvfp4
            layers[_layer_of(repaired, tensor)] = dict(settings)
    return {
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_quant_algo": None,
        "quantized_layers": layers,
        "exclude_modules": [*_plain_experts(repaired, view, chosen), *_head(repaired, view)],
    }


def _plain_experts(repaired: Repaired, view: ModelView, chosen: Mapping[str, str]) -> list[str]:
    """Experts that are not listed: vLLM would take them for what their shared expert is."""
    plain = [t for t in view if t.block is Block.TRUNK and t.role in EXPERT_ROLES and t.name not in chosen]
    return list(dict.fromkeys(_layer_of(repaired, tensor) for tensor in plain))


def excluded(repaired: Repaired, view: ModelView, chosen: Mapping[str, str]) -> list[str]:
    """Everything that stays as it is: paths in the order of their letters, then globs."""
    paths = {"lm_head"}
    for tensor in view:
        inside = tensor.block in (Block.TRUNK, Block.EMBED) and tensor.role in MODULE_ROLES
        if inside and tensor.name not in chosen:
            paths.add(_layer_of(repaired, tensor))
    globs = [f"{root}*" for root in vision_roots(repaired, view)]
    return [*sorted(paths), *globs, *_head(repaired, view)]


def _head(repaired: Repaired, view: ModelView) -> list[str]:
    head = repaired.family.head
    return list(head.globs(view.layers)) if head is not None and view.mtp_layers else []


def vision_roots(repaired: Repaired, view: ModelView) -> list[str]:
    """What the published paths of the vision tower begin with: ``model.visual``."""

    def roots() -> Iterator[str]:
        for tensor in view:
            if tensor.block is Block.VISION:
                root = tensor.name.split(".", 1)[0] + "."
                yield published_name(root, repaired.family, wrapper=repaired.wrapper).removesuffix(".")

    return list(dict.fromkeys(roots()))


def _layer_of(repaired: Repaired, tensor: ModelTensor) -> str:
    """The module path; for a stack of experts that of all experts of the layer."""
    module = modules_of(repaired, tensor)[0]
    return module.rsplit(".", 2)[0] if tensor.role in EXPERT_ROLES else module
