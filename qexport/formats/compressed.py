"""Reading back what compressed-tensors packs: FP8 and NVFP4, in groups of modules.

transformers 5.17 leaves the global scales of NVFP4 experts out and answers with weights that are wrong by
orders of magnitude; FP8 experts it fails to convert (facts by running each; see docs/verification.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qexport.artifacts.forms import Form
from qexport.errors import InputError
from qexport.families.roles import Role
from qexport.formats.hf import ASKED, hf_layout, vllm_name

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.layout import Asked, Promise, Rule, Traits


_FP8_PER = {"tensor": "matrix", "channel": "row", "block": "tile"}


def _promises(artifact: Opened) -> Rule:
    quantization = artifact.details["quantization"]
    ignore = quantization.get("ignore") or []

    def promise(asked: Asked) -> Promise:
        if asked.role not in ASKED | {Role.OUTPUT}:
            return None
        answers = {_matches(name, ignore) for name in (asked.module, vllm_name(asked.module))}
        if len(answers) > 1:
            return "ignored under the name that transformers asks with and not under vLLM's, or the other way"
        if answers == {True}:
            return None
        for group in (quantization.get("config_groups") or {}).values():
            targets = group.get("targets") or []
            if "Linear" in targets or _matches(asked.module, targets):
                return _form(group.get("weights") or {})
        return None

    return promise


def _form(weights: Mapping[str, Any]) -> Form:
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


def _stored_type(artifact: Opened) -> str:
    quantization = artifact.details["quantization"]
    groups = [str(name) for name in quantization.get("config_groups") or {}]
    four = "nvfp4" in str(quantization.get("format")) or any("NVFP4" in name for name in groups)
    return "NVFP4A16" if four else "FP8_BLOCK"


def _unfit(folder: Traits) -> str | None:
    if folder.experts:
        return "transformers does not read compressed-tensors experts rightly"
    return "transformers does not read mixed compressed-tensors formats" if folder.mixed else None


COMPRESSED = hf_layout(
    "compressed-tensors",
    methods=("compressed-tensors",),
    stored_type=_stored_type,
    promises=_promises,
    unfit=_unfit,
)
