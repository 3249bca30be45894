"""Reading back AutoAWQ's layout, ``quant_method: awq``: everything in 4 bits but what is listed.

``modules_to_not_convert`` is read in two ways: vLLM, SGLang and AutoAWQ look for an entry anywhere in a
module's path, transformers takes it for an expression that the path begins with, or for its end. Where
nothing is listed, vLLM lists for itself what has floats alone: ``linear_attn`` of a hybrid, for its
``A_log``, and so whatever is packed inside of it. transformers excludes the output alone.

https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/layers/quantization/auto_awq.py and
https://github.com/huggingface/transformers/blob/main/src/transformers/quantizers/quantizers_utils.py.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qexport.artifacts.weights import StoredWeight
from qexport.checkpoint.tensors import FLOAT_DTYPES
from qexport.errors import InputError
from qexport.families.roles import EXPERT_ROLES, Role
from qexport.formats.hf import ASKED, hf_layout, int_form, names_in_vllm, vllm_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.layout import Asked, OnDisk, Promise, Rule


LIST = "modules_to_not_convert"
# Routers and experts are no linear layers to transformers, and it has no head.
_VLLM_ALONE = EXPERT_ROLES | {Role.ROUTER, Role.MTP_FC, Role.OUTPUT}


def _details(found: OnDisk) -> dict[str, Any]:
    """Nothing; raises InputError: the config declares another packing."""
    declared = found.quantization
    version = str(declared.get("version") or declared.get("format") or "gemm").lower()
    bits = _either(declared, "bits", "w_bit")
    if version != "gemm" or bits != 4:
        raise InputError(
            f"{found.folder.label}: AWQ of version {version!r} and {bits!r} bits is not read",
            hint="Read are 4 bits of version 'gemm', which AutoAWQ writes unless told otherwise.",
        )
    for entry in declared.get(LIST) or ():
        try:
            re.compile(str(entry))
        except re.error as error:
            words = f"{LIST} holds {entry!r:.60}, which is no expression to transformers: {error}"
            raise InputError(f"{found.folder.label}: {words}") from error
    return {}


def _either(declared: Mapping[str, Any], *keys: str) -> Any:
    return next((declared[key] for key in keys if key in declared), None)


def _promises(artifact: Opened) -> Rule:
    declared = artifact.details["quantization"]
    listed = list(declared.get(LIST) or ())
    mapped = [vllm_name(entry) for entry in listed or _floats_alone(artifact)]
    asked_for = ASKED | ({Role.OUTPUT} if declared.get("lm_head") else frozenset())
    group = _either(declared, "group_size", "q_group_size")

    def promise(asked: Asked) -> Promise:
        if asked.role not in asked_for:
            return None
        skipped = any(entry in name for name in names_in_vllm(asked) for entry in mapped)
        if asked.role not in _VLLM_ALONE and skipped != _transformers_skips(asked.module, listed):
            return f"{LIST} excludes it for vLLM and not for transformers, or the other way"
        return None if skipped else int_form(4, group, asked.form)

    return promise


def _transformers_skips(module: str, listed: Iterable[str]) -> bool:
    return any(re.match(entry, module) or module.endswith(entry) for entry in listed)


def _floats_alone(artifact: Opened) -> set[str]:
    """What vLLM lists where nothing is listed."""
    every: set[str] = set()
    packed: set[str] = set()
    for weight in artifact.weights.values():
        assert isinstance(weight, StoredWeight)
        for part in weight.parts.values():
            module = part.name.rpartition(".")[0]
            every.add(module)
            if part.dtype not in FLOAT_DTYPES:
                packed.add(module)
    return every - packed


AWQ = hf_layout(
    "awq",
    methods=("awq",),
    details=_details,
    stored_type=lambda _: "W4A16_AWQ",
    promises=_promises,
    unfit=lambda _: "transformers reads AutoAWQ's layout with gptqmodel alone",
    title="AutoAWQ's layout",
)
