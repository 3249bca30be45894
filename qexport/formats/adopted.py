"""Somebody else's quantized folder made whole: the head and the tower that it lost, and lists that are right.

Libraries that quantize leave the MTP head behind, and sometimes the vision tower; what they write is taken as
it is, to the byte. What joins it is a shard of its own with the base's tensors as they lie there, experts one
by one, and a config that says of every module what it is: loaders take a float for packed numbers otherwise,
and say nothing (``formats/hf.py`` has each reader's rules).

=====================  ==================================================================================
dialect                what is added where a float is not excluded yet
=====================  ==================================================================================
compressed-tensors     ``ignore``: the head and the tower as one expression each; others by their paths
ModelOpt               ``ignore`` and ``exclude_modules``: both as globs; others by their paths
native FP8             ``modules_to_not_convert``: full paths, for a stack of experts that of the stack
AutoAWQ                ``modules_to_not_convert``: head and tower as prefixes; others by their paths
GPTQ                   ``dynamic``: expressions after ``-:``, before what is there: the first that fits counts
=====================  ==================================================================================

Left out: other names. A text-only model's names stay those of one, so no tower is added to it; what the
doctor would rename is an error.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qexport.artifacts.forms import Form
from qexport.artifacts.layout import Asked
from qexport.artifacts.weights import StoredWeight
from qexport.checkpoint.layout import INDEX_NAME
from qexport.doctor.draft import dump_json
from qexport.errors import InputError, UsageProblem, some
from qexport.families.names import VISION_NAMES, published_name
from qexport.families.roles import EXPERT_ROLES, Block
from qexport.formats.folder import plan_folder
from qexport.formats.hf import fused_name, stack_of, vllm_name
from qexport.formats.linears import as_it_is, modules_of
from qexport.formats.order import pass_order
from qexport.formats.plan import ArtifactPlan, PlannedFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from qexport.artifacts.artifact import Opened
    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor, ModelView
    from qexport.formats.folder import FolderTensor


_ALONE = "model.safetensors"
_GRAFTED = "model-grafted.safetensors"
_MODELOPT = "hf_quant_config.json"
_STACKS = (".experts.gate_up_proj", ".experts.down_proj")
_FLOAT = Form("float", 16, per="value")


@dataclass(frozen=True)
class Adopted:
    """What is to be written.

    Attributes:
        plan: small files, and the shard of what is grafted, if anything is.
        kept: shards that stay as they are: the name in the new folder, to that in the old one.
        listed: modules that are newly excluded, as they are written.
    """

    plan: ArtifactPlan
    kept: Mapping[str, str]
    listed: tuple[str, ...]


def plan_adopted(artifact: Opened, repaired: Repaired, label: str) -> Adopted:
    """Plan the folder.

    Args:
        artifact: the quantized folder.
        repaired: the same as floats, after repairs, with what it takes of the base.
        label: what its weights are stored as.

    Raises:
        InputError: names would have to change, or the config declares what qexport does not know.
        UsageProblem: a head or tower that is there is to go, or to be another.
    """
    view = repaired.view()
    _refuse_renames(repaired)
    _refuse_replaced(artifact, repaired)
    mine = {id(repaired.source)}
    grafted = [t for t in view if not any(id(p.checkpoint) in mine for p in t.data.pieces)]
    tensors = [as_it_is(repaired, t, t.data.dtype) for t in pass_order(view) if t in grafted]
    declared, listed = _declared(artifact, repaired, view)
    small = {**repaired.files, "config.json": dump_json({**_config(repaired, view), **declared})}
    outer = artifact.details.get("modelopt")
    if outer:
        outer = copy.deepcopy(dict(outer))
        inner = outer.setdefault("quantization", {})
        # One list for both: which of them is read depends on the reader.
        excluded = declared["quantization_config"]["ignore"] if declared else None
        inner["exclude_modules"] = excluded or [*(inner.get("exclude_modules") or ()), *listed]
        small[_MODELOPT] = json.dumps(outer, indent=4).encode()
    names = sorted({tensor.file for tensor in repaired.source.tensors.values()})
    kept = {_beside(name, alone=names == [_ALONE] and bool(tensors)): name for name in names}
    joined = _beside(_GRAFTED, alone=names == [_ALONE])
    if len(kept) > 1 or tensors:
        small[INDEX_NAME] = _index(artifact, {old: new for new, old in kept.items()}, tensors, joined)
    details = {
        "layout": artifact.layout.word,
        "adopted": artifact.label,
        "mtp": {"layers": repaired.mtp_layers, "origin": repaired.mtp_origin},
        "vision": repaired.vision_origin,
        "grafted": {"tensors": len(tensors), "bytes": sum(s.nbytes for t in tensors for s in t.specs)},
        "listed": list(listed),
        "changed_files": sorted({*repaired.files.changed, "config.json"}),
    }
    kind = "nvfp4" if "NVFP4" in label or label == "MIXED_PRECISION" else "fp8" if "FP8" in label else "int"
    notes = tuple(artifact.layout.notes(artifact))
    if tensors:
        plan = plan_folder(kind, label, tensors, small, max_shard=1 << 62, details=details)
        plan = replace(plan, files=(replace(plan.files[0], name=joined), *plan.files[1:]), notes=notes)
    else:
        files = tuple(PlannedFile(name, len(data), data) for name, data in sorted(small.items()))
        plan = ArtifactPlan(kind, label, files, (), notes, details)
    return Adopted(plan, kept, tuple(listed))


def _beside(name: str, *, alone: bool) -> str:
    """Its name beside another shard: transformers asks no index where there is a ``model.safetensors``."""
    if not alone:
        return name
    return "model-00001-of-00002.safetensors" if name == _ALONE else "model-00002-of-00002.safetensors"


def _refuse_renames(repaired: Repaired) -> None:
    """Raise InputError where repairs would give tensors other names: what is taken as it is keeps its own."""
    renamed = []
    for name, tensor in repaired.tensors.items():
        published = published_name(name, repaired.family, wrapper=repaired.wrapper)
        first = tensor.pieces[0]
        if first.checkpoint is not repaired.source or first.name in (published, f"{published}.weight"):
            continue
        # A layer's experts in one stack are a published form, too: llm-compressor copies such heads.
        if not (stack_of(first.name) == stack_of(published) and first.name.endswith(_STACKS)):
            renamed.append(f"{first.name} as {published}")
    if renamed:
        raise InputError(
            f"{repaired.label}: tensors have other names than readers look for: {some(renamed, 2)}",
            hint="Write the model with `qexport fix` first, and quantize that.",
        )


def _refuse_replaced(artifact: Opened, repaired: Repaired) -> None:
    """Raise UsageProblem where a head or tower would stay in the shards and not be the model's any more."""
    seeing = any(name.startswith(VISION_NAMES) for name in artifact.weights)
    for there, origin, what in (
        (artifact.has_head, repaired.mtp_origin, "an MTP head"),
        (seeing, repaired.vision_origin, "a vision tower"),
    ):
        if there and origin != "own":
            raise UsageProblem(
                f"{repaired.label} has {what} of its own, and its shards are taken as they are",
                hint="Leave --mtp out, or name no --base: what is there is kept. Or quantize it without.",
            )


def _config(repaired: Repaired, view: ModelView) -> dict[str, Any]:
    """config.json without a head that is not there."""
    config = copy.deepcopy(dict(repaired.config))
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    head = repaired.family.head
    if head is not None and not view.mtp_layers and text.get(head.count, head.assumed):
        text[head.count] = 0
    return config


def _index(
    artifact: Opened, places: Mapping[str, str], tensors: Iterable[FolderTensor], joined: str
) -> bytes:
    stored: dict[str, tuple[str, int]] = {}
    for weight in artifact.weights.values():
        assert isinstance(weight, StoredWeight)
        for part in weight.parts.values():
            tensor = part.tensor
            stored[tensor.name] = places[tensor.file], tensor.stop - tensor.start
    stored |= {spec.name: (joined, spec.nbytes) for each in tensors for spec in each.specs}
    size = sum(nbytes for _, nbytes in stored.values())
    found = {name: file for name, (file, _) in sorted(stored.items())}
    return (json.dumps({"metadata": {"total_size": size}, "weight_map": found}, indent=2) + "\n").encode()


def _declared(artifact: Opened, repaired: Repaired, view: ModelView) -> tuple[dict[str, Any], list[str]]:
    """The declaration with every float excluded, and what was added to it."""
    quantization = copy.deepcopy(dict(artifact.details["quantization"]))
    word = artifact.layout.word
    if word == "awq" and not quantization.get("modules_to_not_convert"):
        # Of what is listed, vLLM lists nothing by itself; this is excluded either way.
        quantization["modules_to_not_convert"] = ["lm_head"]
        artifact = replace(artifact, details={**artifact.details, "quantization": quantization})
    listed = list(dict.fromkeys(_missing(artifact, repaired, view)))
    if not quantization:
        return {}, listed  # ModelOpt's other file alone says it
    if word == "gptq":
        quantization["dynamic"] = {entry: {} for entry in listed} | (quantization.get("dynamic") or {})
        return {"quantization_config": quantization}, listed
    key = "modules_to_not_convert" if word in ("fp8", "awq") else "ignore"
    if word == "fp8" and quantization.get("ignored_layers"):
        key = "ignored_layers"
    quantization[key] = [*(quantization.get(key) or ()), *listed]
    return {"quantization_config": quantization}, listed


def _missing(artifact: Opened, repaired: Repaired, view: ModelView) -> Iterator[str]:
    """Entries for floats that a reader would take for something else by what is declared now."""
    promise = artifact.layout.promises(artifact)
    weights = (weight for weight in artifact.weights.values() if isinstance(weight, StoredWeight))
    packed = {f"{weight.module}.weight" for weight in weights if weight.form.kind != "float"}
    for tensor in view:
        if tensor.name.endswith(".bias") or any(piece.name in packed for piece in tensor.data.pieces):
            continue
        for module in modules_of(repaired, tensor):
            if promise(Asked(module, tensor.role, _FLOAT)) is not None:
                yield from _entries(artifact.layout.word, repaired, view, tensor, module)


def _entries(
    word: str, repaired: Repaired, view: ModelView, tensor: ModelTensor, module: str
) -> Iterator[str]:
    head = repaired.family.head
    if word == "fp8":
        yield stack_of(module) if tensor.role in EXPERT_ROLES else module
    elif tensor.block is Block.MTP and head is not None:
        entries: dict[str, tuple[str, ...]] = {
            "compressed-tensors": (f"re:{head.regex(view.layers)}",),
            "awq": head.prefixes(0, view.layers)[:1],
            "gptq": (f"-:{head.regex(view.layers)}",),
        }
        yield from entries.get(word, head.globs(view.layers))
    elif tensor.block is Block.VISION:
        root = published_name(f"{tensor.name.partition('.')[0]}.", repaired.family, wrapper=repaired.wrapper)
        root = root.removesuffix(".")
        last = root.rsplit(".", 1)[-1]
        # vLLM turns a prefix into its own name where the dot is there; SGLang has no such names.
        entries = {
            "compressed-tensors": (f"re:.*{re.escape(last)}.*",),
            "awq": (f"{root}.", last),
            "gptq": (f"-:.*{re.escape(last)}.*",),
        }
        yield from entries.get(word, (f"{root}*",))
    elif word == "gptq":
        names = dict.fromkeys(_below(each) for each in (module, fused_name(module, tensor.role)))
        yield f"-:.*({'|'.join(names)})$"
    else:
        yield from dict.fromkeys((module, vllm_name(module)) if word == "compressed-tensors" else (module,))


def _below(module: str) -> str:
    """A module's path from its layer on, which every reader has, as an expression."""
    _, mark, rest = module.rpartition(".layers.")
    return re.escape(mark + rest) if mark else re.escape(module)
