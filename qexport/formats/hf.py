"""Hugging Face folders: opened alike whatever is packed in them, and how vLLM asks what is.

Plain, native FP8, compressed-tensors and ModelOpt differ in what they call parts and in what the config
says; what is stored tells itself (:mod:`qexport.artifacts.forms`), so there is one way to read them.

Loaders build a model from the config first and then pour tensors in; of what does not fit, many say nothing
(vLLM casts a bf16 matrix into FP8 codes and leaves the scales as they were). So the question is what the
config promises, asked the way the reader asks it:

==================  ====================================================================================
native FP8          vLLM: a linear layer is FP8 unless its full path is listed; a listed name that contains
                    the experts' path keeps all of them
compressed-tensors  ``ignore`` by exact name or ``re:`` (matched from the start), else the first group whose
                    target fits; transformers asks with the names in the file, vLLM with its own, to which
                    it turns paths that are written out, and no expressions
ModelOpt            vLLM: excluded by exact name, by containing the entry (!), or by glob, with fused layers
                    asked under their fused names; MIXED_PRECISION quantizes what it lists and nothing else
AutoAWQ, GPTQ       see ``awq.py`` and ``gptq.py``
MLX                 overrides by path, else the settings for all
==================  ====================================================================================

https://github.com/vllm-project/vllm/tree/main/vllm/model_executor/layers/quantization (fp8.py,
compressed_tensors/, modelopt.py) and https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qexport.artifacts.artifact import Opened
from qexport.artifacts.description import Description, describe_folder
from qexport.artifacts.forms import Form
from qexport.artifacts.layout import ArtifactLayout, OnDisk
from qexport.artifacts.weights import gather
from qexport.checkpoint.config import text_config
from qexport.doctor.draft import SmallFiles
from qexport.errors import InputError, UsageProblem
from qexport.families.hyper import resolve
from qexport.families.known import FAMILIES, family_of
from qexport.families.roles import EXPERT_ROLES, VISION_LINEARS, Role
from qexport.formats.linears import LINEAR_ROLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from qexport.artifacts.layout import Asked

ASKED = LINEAR_ROLES | {
    Role.LINEAR_A,
    Role.LINEAR_B,
    Role.MTP_FC,
    Role.ROUTER,
    Role.SHARED_EXPERT_ROUTER,
    *VISION_LINEARS,
}
"""Modules that vLLM makes linear layers of."""
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


def hf_layout(
    word: str,
    *,
    methods: tuple[str, ...] = (),
    opens: Callable[[OnDisk], bool] = lambda _: False,
    details: Callable[[OnDisk], Mapping[str, Any]] = lambda _: {},
    words: Callable[[OnDisk], Mapping[str, str]] = lambda _: {},
    **facts: Any,
) -> ArtifactLayout:
    """The layout called ``word``, which the config tells by ``methods``, or ``opens`` where it names none.

    ``words`` are parts that mean something else than their names say, by the config.
    """

    def takes(found: OnDisk) -> bool:
        if found.quantization:
            return found.quantization.get("quant_method") in methods
        return opens(found)

    def read(found: OnDisk) -> Opened:
        return _open(found, layout, details(found), words(found))

    def describe(found: OnDisk) -> Description:
        return describe_folder(found, read(found))

    layout = ArtifactLayout(word=word, opens=takes, open=read, describe=describe, methods=methods, **facts)
    return layout


def _open(
    found: OnDisk, layout: ArtifactLayout, details: Mapping[str, Any], words: Mapping[str, str]
) -> Opened:
    folder, config = found.folder, found.config
    outer = details.get("modelopt")
    for declared in (found.quantization, outer and outer.get("quantization")):
        refuse_odd(folder.label, declared)
    if found.head is not None:
        raise UsageProblem(
            f"{folder.label}: the MTP head of such a folder is inside it, not in {found.head.name}"
        )
    family, text = family_of(config), text_config(config)
    return Opened(
        label=folder.label,
        layout=layout,
        family=family,
        config=config,
        text=resolve(family, text, config).text,
        weights=gather([(folder, "")], {}, family, words),
        files=SmallFiles(folder, {}),
        declared_mtp=declared_mtp(text),
        details={"quantization": found.quantization, **details},
    )


_LISTS = ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "targets")
_TABLES = ("config_groups", "quantized_layers", "weights", "input_activations")


def refuse_odd(label: str, declared: Any) -> None:
    """Raise InputError where a declaration is not of the shape that every reader takes it to have."""
    if declared is None:
        return
    if not isinstance(declared, Mapping):
        raise InputError(f"{label}: in its quantization stands {declared!r:.60} in place of a table")
    for key in _LISTS:
        listed = declared.get(key) or []
        odd = [each for each in listed if not isinstance(each, str)] if isinstance(listed, list) else [listed]
        if odd:
            raise InputError(f"{label}: {key} of its quantization is no list of names: {odd[0]!r:.60}")
        for each in listed:
            _refuse_expression(label, key, each)
    for key in ("num_bits", "group_size"):
        number = declared.get(key)
        if number is not None and not isinstance(number, int):
            raise InputError(f"{label}: {key} of its quantization is no whole number: {number!r:.60}")
    for key in _TABLES:
        table = declared.get(key)
        refuse_odd(label, table)
        for inner in table.values() if key in _TABLES[:2] and table else ():
            refuse_odd(label, inner)


def _refuse_expression(label: str, key: str, entry: str) -> None:
    if entry.startswith("re:"):
        try:
            re.compile(entry[3:])
        except re.error as error:
            raise InputError(
                f"{label}: {key} of its quantization holds {entry!r:.60}, which is no expression: {error}"
            ) from error


def declared_mtp(text: Mapping[str, Any]) -> int:
    """MTP layers that a config promises, under either key that readers look for."""
    values = (text.get(family.head.count) for family in FAMILIES.values() if family.head is not None)
    return max((value for value in values if isinstance(value, int)), default=0)


def stack_of(module: str) -> str:
    """The experts that a module is one of."""
    before, mark, _ = module.partition(".mlp.experts")
    return before + mark


def fused_name(module: str, role: Role) -> str:
    """The path of the layer that vLLM runs a module in: that of what it is fused with, or the stack's."""
    if role in EXPERT_ROLES:
        return stack_of(module)
    return f"{module.rpartition('.')[0]}.{_FUSED[role]}" if role in _FUSED else module


def names_in_vllm(asked: Asked) -> tuple[str, ...]:
    """The paths under which vLLM asks for a module: its own, where it is no expert, and the fused layer's."""
    names = [fused_name(asked.module, asked.role)]
    if asked.role not in EXPERT_ROLES:
        names.append(asked.module)
    return tuple(vllm_name(name) for name in names)


def int_form(bits: int, group: Any, stored: Form) -> Form:
    """Integers in groups; rows that are one group cannot be told from such that have a scale each."""
    if group in (None, -1) or stored == Form("int", bits, per="row"):
        return Form("int", bits, per="row")
    return Form("int", bits, int(group))


def vllm_name(module: str) -> str:
    """The path under which vLLM asks: its multimodal model wraps the language model the other way round."""
    for theirs, ours in (
        ("model.language_model.", "language_model.model."),
        ("model.visual.", "visual."),
    ):
        if module.startswith(theirs):
            return ours + module.removeprefix(theirs)
    return module
