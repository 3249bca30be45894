"""Reading back GPTQ's layout, ``quant_method: gptq``, of AutoGPTQ, GPTQModel and AutoRound.

Which modules are packed is said in up to three places, and each reader looks at its own:

================================  ======================================================================
``dynamic``                       expressions from the start of a path, the first that fits: ``-:`` excludes,
                                  ``+:`` or none gives other bits or groups. GPTQModel asks with the names in
                                  the file, vLLM and SGLang with theirs, and for fused matrices at once
``modules_in_block_to_quantize``  vLLM: parts of paths that are packed; where there are none, the modules that
                                  are stored so. Not asked for experts
``lm_head``                       whether the output is packed
================================  ======================================================================

vLLM takes zero points to be the middle wherever ``sym`` says so and leaves ``g_idx`` out; others read both.

https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/layers/quantization/utils/gptq_utils.py and
https://github.com/ModelCloud/GPTQModel (``dynamic``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qexport.artifacts.qweight import LESS_ONE, QWeight
from qexport.artifacts.weights import StoredWeight
from qexport.errors import InputError
from qexport.families.roles import EXPERT_ROLES, Role
from qexport.formats.hf import ASKED, hf_layout, int_form, names_in_vllm, vllm_name

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.layout import Asked, OnDisk, Promise, Rule


# Linear layers to vLLM alone, which looks at what is stored.
_VLLM_ALONE = frozenset({Role.ROUTER, Role.SHARED_EXPERT_ROUTER, Role.MTP_FC})
_LESS_ONE, _AS_THEY_ARE = "gptq", "gptq_v2"
Override = Mapping[str, Any] | bool
"""What ``dynamic`` has for a module: ``False``: it is excluded."""


def _details(found: OnDisk) -> dict[str, Any]:
    """``dynamic``, checked; raises InputError: the config declares another packing, or is not understood."""
    declared, label = found.quantization, found.folder.label
    bits, kind = declared.get("bits"), _format(declared)
    if kind not in (_LESS_ONE, _AS_THEY_ARE) or bits not in (4, 8):
        raise InputError(
            f"{label}: GPTQ of format {kind!r} and {bits!r} bits is not read",
            hint=f"Read are 4 and 8 bits of {_LESS_ONE!r} and {_AS_THEY_ARE!r}.",
        )
    dynamic = declared.get("dynamic") or {}
    if not isinstance(dynamic, Mapping) or not all(isinstance(each, Mapping) for each in dynamic.values()):
        raise InputError(f"{label}: dynamic of its quantization is no table of expressions: {dynamic!r:.60}")
    for pattern in dynamic:
        try:
            re.compile(pattern.removeprefix("-:").removeprefix("+:"))
        except re.error as error:
            raise InputError(
                f"{label}: dynamic holds {pattern!r:.60}, which is no expression: {error}"
            ) from error
    return {}


def _format(declared: Mapping[str, Any]) -> str:
    return str(declared.get("checkpoint_format") or declared.get("format") or _LESS_ONE).lower()


def _words(found: OnDisk) -> Mapping[str, str]:
    return {"qzeros": LESS_ONE} if _format(found.quantization) == _LESS_ONE else {}


def _override(dynamic: Mapping[str, Any], name: str) -> Override:
    for pattern, changes in dynamic.items():
        if pattern.startswith("-:"):
            if re.match(pattern[2:], name):
                return False
        elif re.match(pattern.removeprefix("+:"), name):
            return dict(changes)
    return {}


def _promises(artifact: Opened) -> Rule:
    declared = artifact.details["quantization"]
    dynamic = declared.get("dynamic") or {}
    packed = [vllm_name(each) for each in _packed(artifact)]
    asked_for = ASKED | ({Role.OUTPUT} if declared.get("lm_head") else frozenset())

    def promise(asked: Asked) -> Promise:
        if asked.role not in asked_for:
            return None
        first, *others = (_override(dynamic, name) for name in (asked.module, *names_in_vllm(asked)))
        if any(other != first for other in others):
            return "dynamic has other rules for it under the names that vLLM asks with"
        if isinstance(first, bool):
            return None
        if asked.role not in EXPERT_ROLES and not any(each in vllm_name(asked.module) for each in packed):
            if asked.role in _VLLM_ALONE:
                return None
            return "vLLM takes it for floats, and readers that go by dynamic alone for packed"
        return int_form(first.get("bits", declared["bits"]), _group(declared, first), asked.form)

    return promise


def _packed(artifact: Opened) -> Iterator[str]:
    """Modules that vLLM takes for packed, where no rule excludes them."""
    named = list(_flat(artifact.details["quantization"].get("modules_in_block_to_quantize")))
    yield from named or (
        weight.module
        for weight in artifact.weights.values()
        if isinstance(weight, StoredWeight) and "qweight" in weight.parts
    )


def _flat(names: Any) -> Iterator[str]:
    if isinstance(names, str):
        yield names
    elif isinstance(names, Sequence):
        for each in names:
            yield from _flat(each)


def _group(declared: Mapping[str, Any], override: Mapping[str, Any]) -> Any:
    return override.get("group_size", declared.get("group_size"))


def _contradictions(artifact: Opened) -> Iterator[str]:
    """Numbers that some readers look at and others take for granted."""
    declared = artifact.details["quantization"]
    dynamic = declared.get("dynamic") or {}
    for weight in artifact.weights.values():
        if not isinstance(weight, StoredWeight) or "qweight" not in weight.parts:
            continue
        try:
            numbers = weight.decode()
        except InputError:  # said once, where codes and scales are held against each other
            continue
        assert isinstance(numbers, QWeight)
        override = _override(dynamic, weight.module)
        own = override if isinstance(override, Mapping) else {}
        if own.get("sym", declared.get("sym", True)) and (wrong := numbers.off_middle()):
            yield f"{weight.module}: sym is true, by which readers take zero points to be others: {wrong}"
        if not own.get("desc_act", declared.get("desc_act")) and not numbers.ordered:
            yield f"{weight.module}: g_idx is not in order, and by desc_act vLLM takes it to be"


def _notes(artifact: Opened) -> Iterator[str]:
    declared = artifact.details["quantization"]
    dynamic = [each for each in (declared.get("dynamic") or {}).values() if each]
    if not all(each.get("sym", True) for each in (declared, *dynamic)):
        yield "sym is false: vLLM refuses GPTQ with zero points; GPTQModel runs it"
    if any(each.get("desc_act") and _group(declared, each) != -1 for each in (declared, *dynamic)):
        yield "desc_act is true: vLLM refuses GPTQ whose groups are not in order; GPTQModel runs it"


GPTQ = hf_layout(
    "gptq",
    methods=("gptq",),
    details=_details,
    words=_words,
    stored_type=lambda artifact: f"W{artifact.details['quantization'].get('bits')}A16_GPTQ",
    promises=_promises,
    contradictions=_contradictions,
    notes=_notes,
    unfit=lambda _: "transformers reads GPTQ's layout with gptqmodel alone",
    title="GPTQ's layout",
)
