"""What quantized Hugging Face folders (FP8, NVFP4) have in common: which matrices are linear layers, which of
them runtimes fuse, and the module paths they are published under.

Only roles are looked at. Experts are one stack in the view and one module each in such folders: loaders that
know quantized experts look for ``experts.N.gate_proj``, and none for a quantized stack.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from qexport.assign.assignment import PLAIN, Assignment, one_of, read_types
from qexport.checkpoint.shards import TensorSpec
from qexport.codecs.contract import Float
from qexport.errors import InputError
from qexport.families.names import published_name
from qexport.families.roles import EXPERT_ROLES, Block, Role
from qexport.formats.folder import FolderTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor, ModelView


MLP_ROLES = frozenset(
    {
        Role.FFN_GATE,
        Role.FFN_UP,
        Role.FFN_DOWN,
        Role.EXPERTS_GATE,
        Role.EXPERTS_UP,
        Role.EXPERTS_DOWN,
        Role.SHARED_EXPERT_GATE,
        Role.SHARED_EXPERT_UP,
        Role.SHARED_EXPERT_DOWN,
    }
)
ATTENTION_ROLES = frozenset({Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_OUTPUT})
DELTA_ROLES = frozenset({Role.LINEAR_QKV, Role.LINEAR_Z, Role.LINEAR_OUT})
"""The large projections of Gated DeltaNet; those of its decay and gate, a row per head, stay as they are."""
LINEAR_ROLES = MLP_ROLES | ATTENTION_ROLES | DELTA_ROLES

# vLLM's packed_modules_mapping and SGLang's merged linears: one kernel, so one format and one global scale.
FUSED_ROLES = (
    frozenset({Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V}),
    frozenset({Role.FFN_GATE, Role.FFN_UP}),
    frozenset({Role.SHARED_EXPERT_GATE, Role.SHARED_EXPERT_UP}),
    frozenset({Role.EXPERTS_GATE, Role.EXPERTS_UP}),
    frozenset({Role.LINEAR_QKV, Role.LINEAR_Z}),
)


def fused_roles(role: Role) -> frozenset[Role]:
    """The roles that runtimes fuse with ``role`` in one layer, itself among them."""
    return next((group for group in FUSED_ROLES if role in group), frozenset({role}))


def kernel_of(tensor: ModelTensor) -> tuple[Block, int | None, frozenset[Role]]:
    """The same for all tensors that one kernel runs, in one format: what is fused, a layer's experts."""
    roles = EXPERT_ROLES if tensor.role in EXPERT_ROLES else fused_roles(tensor.role)
    return tensor.block, tensor.layer, roles


def sharing(view: ModelView, taken: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Of each tensor that is taken, those that have one global scale with it: what is fused; experts one by
    one."""
    groups: dict[object, list[str]] = {}
    keys = {t.name: (t.block, t.layer, fused_roles(t.role)) for t in view if t.name in taken}
    for name, key in keys.items():
        groups.setdefault(key, []).append(name)
    return {name: tuple(groups[key]) for name, key in keys.items()}


def given_types(
    path: Path | Assignment | None, word: str, view: ModelView, known: Collection[str], own: Mapping[str, str]
) -> tuple[Assignment, list[str]]:
    """The types of a folder's linear layers: those of the file over the format's ``own``, and what to say.

    Args:
        path: an assignment, or nothing.
        known: the format's words.
        own: of every tensor that may be quantized, the format's choice.

    Raises:
        InputError: the file is for another model or format, quantizes what is no linear layer, or gives the
            parts of one kernel different types.
        UsageProblem: an unknown type.
    """
    if path is None:
        return Assignment(word, "", own), []
    given = read_types(path, word)
    tensors = {tensor.name: tensor for tensor in view}
    given.check(tensors, one_of(known))
    kernels: dict[object, str] = {}
    for name, kind in given.types.items():
        if kind != PLAIN and name not in own:
            raise InputError(f"{given.label} has {kind} for {name}, which {word} does not quantize here")
        first = kernels.setdefault(kernel_of(tensors[name]), name)
        if name in own and kind != given.types[first]:
            raise InputError(
                f"{given.label} has {given.types[first]} for {first} and {kind} for {name}, "
                "which runtimes fuse: they need one type"
            )
    types = {name: given.types.get(name, kind) for name, kind in own.items()}
    return Assignment(word, given.label, types), given.missing(own)


def expressions_of(
    tensors: Iterable[ModelTensor], wanted: Callable[[str], bool], inside: Callable[[ModelTensor], str]
) -> list[str]:
    """Regular expressions for the modules that are wanted: one where all layers agree, else one a layer.

    Args:
        wanted: by canonical name.
        inside: the path below the layer, as an expression.
    """
    layers: dict[str, list[tuple[int | None, bool]]] = {}
    for tensor in tensors:
        layers.setdefault(inside(tensor), []).append((tensor.layer, wanted(tensor.name)))
    entries: list[str] = []
    for pattern, places in layers.items():
        found = [layer for layer, is_wanted in places if is_wanted]
        if len(found) == len(places):
            entries.append(f"re:.*{pattern}")
        else:
            entries += [rf"re:.*layers\.{layer}\.{pattern}" for layer in dict.fromkeys(found)]
    return entries


def modules_of(repaired: Repaired, tensor: ModelTensor) -> tuple[str, ...]:
    """The published module path (no ``.weight``) of ``tensor``; for stacked experts one for each expert.

    ``model.language_model.layers.0.mlp.experts.3.gate_proj`` in the wrapper form.
    """
    name = tensor.name.removesuffix(".weight")
    names = [name]
    if tensor.role in EXPERT_ROLES:
        parent, projection = name.rsplit(".", 1)
        names = [f"{parent}.{expert}.{projection}" for expert in range(tensor.shape[0])]
    return tuple(published_name(each, repaired.family, wrapper=repaired.wrapper) for each in names)


def as_it_is(repaired: Repaired, tensor: ModelTensor, dtype: str) -> FolderTensor:
    """A tensor that is not quantized, under its published name; experts one by one."""
    shape = tensor.shape
    names = [published_name(tensor.name, repaired.family, wrapper=repaired.wrapper)]
    if tensor.role in EXPERT_ROLES:
        names, shape = [f"{module}.weight" for module in modules_of(repaired, tensor)], shape[1:]
    copies = tuple(TensorSpec(name, dtype, shape) for name in names)
    return FolderTensor(tensor.name, tensor.shape, tensor.data, Float(dtype), (copies,))


def declaring(repaired: Repaired, view: ModelView, quantization: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with ``quantization_config``, and without a head that is not there."""
    config = copy.deepcopy(dict(repaired.config))
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    head = repaired.family.head
    if head is not None and not view.mtp_layers and text.get(head.count, head.assumed):
        text[head.count] = 0  # loaders would draft with whatever memory holds, silently
    return {**config, "quantization_config": quantization}


def by_role(
    view: ModelView, taken: Collection[str], stored: Iterable[FolderTensor]
) -> dict[str, dict[str, int]]:
    """For each role with quantized tensors: how many matrices they are, and their bytes with scales."""
    made = {tensor.name: tensor for tensor in stored}
    found: dict[str, dict[str, int]] = {}
    for tensor in view:
        if tensor.name in taken:
            entry = found.setdefault(tensor.role.value, {"tensors": 0, "bytes": 0})
            entry["tensors"] += len(made[tensor.name].streams[0])
            entry["bytes"] += sum(spec.nbytes for spec in made[tensor.name].specs)
    return found
