"""Which matrices become NVFP4 or FP8: a scope's name, a regular expression, or a choice that is given.

Only linear layers of the language model's own layers are ever chosen; routers, the small projections of
Gated DeltaNet, embeddings, vision and the MTP head stay as they are, as in NVIDIA's releases. What a runtime
fuses is one kernel and has one format: q, k and v; gate and up; in_proj_qkv and in_proj_z; and all experts of
a layer. A scope takes all of such a group or nothing of it. A scope never does less than it says: a matrix
whose rows do not divide into blocks (for FP8 of compressed-tensors sides into tiles) is an error, not an
omission.

``lm_head`` may be either in ModelOpt's layout, whose readers take it since NVIDIA's own files have it so. In
that of compressed-tensors it stays as it is: SGLang reads no head in tiles, and older releases of both no
quantized head at all. Embeddings are not quantized by either: vLLM's takes integers only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qexport.assign.assignment import PLAIN, Assignment
from qexport.codecs.contract import FP8_TILE
from qexport.errors import InputError, UsageProblem
from qexport.families.roles import Block, Role
from qexport.formats.fp8.scope import FP8, misfit
from qexport.formats.linears import (
    ATTENTION_ROLES,
    DELTA_ROLES,
    LINEAR_ROLES,
    MLP_ROLES,
    given_types,
    kernel_of,
    modules_of,
)
from qexport.formats.nvfp4.options import NVIDIA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor, ModelView
    from qexport.formats.nvfp4.options import Nvfp4Options


NVFP4 = "NVFP4"
WORDS = (NVFP4, FP8, PLAIN)
_BLOCK = 16
# https://huggingface.co/nvidia/Qwen3.6-27B-NVFP4 and ModelOpt's recipe
# huggingface/qwen3_5/ptq/w4a16_nvfp4-fp8_attn-kv_fp8_cast.
_BY_ROLE: Mapping[str, Mapping[Role, str]] = {
    "mlp": dict.fromkeys(MLP_ROLES, NVFP4),
    "mlp+attention": dict.fromkeys(MLP_ROLES | ATTENTION_ROLES, NVFP4),
    "all-linear": dict.fromkeys(LINEAR_ROLES, NVFP4),
    NVIDIA: {
        **dict.fromkeys(MLP_ROLES | {Role.OUTPUT}, NVFP4),
        **dict.fromkeys(ATTENTION_ROLES | DELTA_ROLES, FP8),
    },
}


def choose(
    repaired: Repaired, view: ModelView, options: Nvfp4Options
) -> tuple[dict[str, str], Assignment, list[str]]:
    """The format of each tensor that is quantized, by canonical name, in model order; that of all linear
    layers and ``lm_head``; and what a given choice leaves open.

    Raises:
        UsageProblem: a regular expression is none, matches nothing, or takes part of a fused group.
        InputError: the model has nothing of the scope, or rows that do not divide into blocks; a given choice
            is for another model, or says what the layout cannot.
    """
    by_role = _BY_ROLE.get(options.scope)
    if by_role is None:
        chosen = _by_pattern(repaired, view, options.scope)
    else:
        heads = () if options.keep_head or options.form != "modelopt" else (Block.HEAD,)
        chosen = {
            tensor.name: by_role[tensor.role]
            for tensor in view
            if tensor.block in (Block.TRUNK, *heads) and tensor.role in by_role
        }
    own = {tensor.name: chosen.get(tensor.name, PLAIN) for tensor in choosable(view, options)}
    given, notes = given_types(options.types_from, "nvfp4", view, WORDS, own)
    types = {name: kind for name, kind in given.types.items() if kind != PLAIN}
    chosen = {tensor.name: types[tensor.name] for tensor in view if tensor.name in types}
    if not chosen and not isinstance(options.types_from, Assignment):
        raise InputError(f"{view.label} has nothing that {given.label or options.scope} would quantize.")
    for tensor in view:
        why = why_not(repaired, tensor, chosen.get(tensor.name, PLAIN), options)
        if why is not None:
            raise InputError(
                f"{tensor.name} {why}",
                hint="Choose a scope without it: a regular expression over module paths.",
            )
    return chosen, replace(given, label=given.label or options.scope), notes


def choosable(view: ModelView, options: Nvfp4Options) -> list[ModelTensor]:
    """All tensors that may have another type than their own."""
    head = Role.OUTPUT if options.form == "modelopt" else None
    return [
        tensor
        for tensor in view
        if (tensor.block is Block.TRUNK and tensor.role in LINEAR_ROLES) or tensor.role is head
    ]


def why_not(repaired: Repaired, tensor: ModelTensor, word: str, options: Nvfp4Options) -> str | None:
    """Why the tensor cannot be stored so; ``None``: it can."""
    if word == NVFP4 and tensor.shape[-1] % _BLOCK:
        return f"has rows of {tensor.shape[-1]} values, which do not divide into NVFP4's blocks of {_BLOCK}"
    if word == FP8 and options.form != "modelopt" and (why := misfit(tensor, repaired.hyper.dims)):
        return f"does not divide into FP8's tiles of {FP8_TILE}: {why}"
    return None


def _by_pattern(repaired: Repaired, view: ModelView, pattern: str) -> dict[str, str]:
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        known = ", ".join(_BY_ROLE)
        raise UsageProblem(
            f"scope {pattern!r} is neither one of {known} nor a regular expression: {error}"
        ) from None
    groups: dict[Any, list[tuple[str, bool]]] = defaultdict(list)
    chosen: dict[str, str] = {}
    for tensor in view:
        if tensor.block is not Block.TRUNK or tensor.role not in LINEAR_ROLES:
            continue
        found = [(module, wanted.search(module) is not None) for module in modules_of(repaired, tensor)]
        groups[kernel_of(tensor)] += found
        if any(hit for _, hit in found):
            chosen[tensor.name] = NVFP4
    for group in groups.values():
        taken, left = [m for m, hit in group if hit], [m for m, hit in group if not hit]
        if taken and left:
            raise UsageProblem(
                f"scope {pattern!r} matches {taken[0]} but not {left[0]}, which runtimes fuse with it",
                hint="Let it match all of them or none.",
            )
    if not chosen:
        raise UsageProblem(
            f"scope {pattern!r} matches no linear layer of {view.label}",
            hint="It is searched in paths such as model.language_model.layers.0.mlp.up_proj.",
        )
    return chosen
