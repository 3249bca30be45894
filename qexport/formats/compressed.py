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
from qexport.formats.hf import ASKED, hf_layout, int_form, vllm_name

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.layout import Asked, Promise, Rule, Traits


_FP8_PER = {"tensor": "matrix", "channel": "row", "block": "tile"}


def _promises(artifact: Opened) -> Rule:
    quantization = artifact.details["quantization"]
    ignore = quantization.get("ignore") or []
    groups = quantization.get("config_groups") or {}
    targets = {name: group.get("targets") or () for name, group in groups.items()}
    # vLLM takes its own names for paths that are written out, and leaves expressions as they are.
    mapped = [vllm_name(entry) for entry in ignore]
    renamed = {name: [vllm_name(entry) for entry in each] for name, each in targets.items()}

    def promise(asked: Asked) -> Promise:
        if asked.role not in ASKED | {Role.OUTPUT}:
            return None
        answers = {_matches(asked.module, ignore), _matches(vllm_name(asked.module), mapped)}
        if len(answers) > 1:
            return "ignored under the name that transformers asks with and not under vLLM's, or the other way"
        if answers == {True}:
            return None
        names = {_named(asked.module, targets), _named(vllm_name(asked.module), renamed)}
        if len(names) > 1:
            return "in different groups under the name that transformers asks with and under vLLM's"
        (named,) = names
        group = groups.get(named or "") or _by_class(groups)
        return None if group is None else _form(group.get("weights") or {}, asked.form)

    return promise


def _named(module: str, targets: Mapping[str, Iterable[str]]) -> str | None:
    """The group that names the module: asked before any that takes a class, by vLLM."""
    return next((name for name, each in targets.items() if _matches(module, each)), None)


def _by_class(groups: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((group for group in groups.values() if "Linear" in (group.get("targets") or ())), None)


def _form(weights: Mapping[str, Any], stored: Form) -> Form:
    kind, bits, strategy = weights.get("type"), weights.get("num_bits"), weights.get("strategy")
    if kind == "float" and bits == 8 and strategy in _FP8_PER:
        return Form("fp8", 8, per=_FP8_PER[strategy])
    if kind == "int" and bits in (4, 8) and strategy in ("group", "channel"):
        return int_form(bits, None if strategy == "channel" else weights.get("group_size") or 0, stored)
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


# Of tensors with a scale each there is llm-compressor's FP8, which quantizes inputs so, too.
_EIGHT = {"channel": "FP8_DYNAMIC", "tensor": "FP8"}


def _stored_type(artifact: Opened) -> str:
    """llm-compressor's name for its scheme; of several, theirs for that: the least bits first."""
    groups = (artifact.details["quantization"].get("config_groups") or {}).values()
    if (integers := _integers(groups)) is not None:
        return integers
    bits = {(group.get("weights") or {}).get("num_bits") for group in groups}
    inputs = {(group.get("input_activations") or {}).get("num_bits") for group in groups}
    four = "W4A4_NVFP4" if 4 in inputs else "NVFP4A16"
    strategies = {(group.get("weights") or {}).get("strategy") for group in groups}
    eight = next((word for strategy, word in _EIGHT.items() if strategy in strategies), "FP8_BLOCK")
    return "+".join(word for width, word in ((4, four), (8, eight)) if width in bits) or eight


def _integers(groups: Iterable[Mapping[str, Any]]) -> str | None:
    """llm-compressor's name for a scheme of integers, such as ``W4A16``; ``None``: there is none."""
    for group in groups:
        weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
        if weights.get("type") == "int":
            return f"W{weights.get('num_bits')}A{inputs.get('num_bits') or 16}"
    return None


def _unfit(folder: Traits) -> str | None:
    if folder.experts:
        return "transformers does not read compressed-tensors experts rightly"
    if folder.half:
        return "transformers makes 4-bit floats bfloat16, which it does not multiply with float16"
    return "transformers does not read mixed compressed-tensors formats" if folder.mixed else None


COMPRESSED = hf_layout(
    "compressed-tensors",
    methods=("compressed-tensors",),
    stored_type=_stored_type,
    promises=_promises,
    unfit=_unfit,
)
