"""An NVFP4 folder as an artifact: what is quantized, how it is stored, and what the config says of it.

Published names in the form that the repaired checkpoint has; experts one by one, as every loader takes them;
everything that a scope leaves out in its own dtype. Global scales are shared by what runtimes fuse
(:mod:`qexport.formats.nvfp4.scope`). Tensors come in the order of the pass.

W4A4 stores a scale for the inputs of each matrix, too: of the largest magnitude that enters it while a text
goes through the model, which happens as the folder is written (:mod:`qexport.evidence.largest_inputs`). What
is fused has the same inputs, so it has the same scale; all experts of a layer share that of gate and up, and
in ModelOpt's layout that of down.

Left out: FP8 KV caches, which are a choice of whoever serves the model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.codecs.contract import Fp8Matrix, Nvfp4, StoredType
from qexport.doctor.draft import dump_json
from qexport.evidence.sensitivity import filled
from qexport.evidence.store import Evidence, Kind, Need
from qexport.families.roles import Role
from qexport.formats.feedback import feedback_notes, with_feedback
from qexport.formats.folder import FolderTensor, plan_folder
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import as_fp8
from qexport.formats.fp8.scope import FP8
from qexport.formats.gguf.importance import evidence_of
from qexport.formats.limits import config_notes
from qexport.formats.linears import as_it_is, by_role, declaring, modules_of, sharing
from qexport.formats.nvfp4.compressed import compressed_config
from qexport.formats.nvfp4.layout import LAYOUTS, fp8_specs, nvfp4_specs
from qexport.formats.nvfp4.modelopt import MODELOPT_WORDS, modelopt_config, modelopt_file
from qexport.formats.nvfp4.scope import choose
from qexport.formats.order import pass_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor, ModelView
    from qexport.formats.nvfp4.options import Nvfp4Options
    from qexport.formats.plan import ArtifactPlan


# As published: rounding decay rates costs more than their few bytes.
_FLOAT32 = (Role.LINEAR_A_LOG, Role.LINEAR_NORM)
_ROUNDED = "the source is float32: what is not quantized is rounded to bfloat16, as loaders run it"


def plan_nvfp4(repaired: Repaired, options: Nvfp4Options, *, sized: bool = False) -> ArtifactPlan:
    """Plan the folder.

    ``details["quantized"]`` gives for each role its algorithm, how many matrices there are (experts counted
    one by one) and how many bytes they take.

    Args:
        sized: for types that were chosen for an aim; then importance is that of ``filled``.

    Raises:
        UsageProblem: the scope is a regular expression that matches nothing or divides a fused group.
        InputError: the model has nothing of the scope, or less than all of it can be quantized; the
            importance matrix belongs to another model.
    """
    view = repaired.view()
    chosen, assignment, left_open = choose(repaired, view, options)
    evidence = evidence_of(view, options.importance)
    if sized:
        evidence = filled(evidence)
    makers = _Makers(repaired, options, chosen, evidence, sharing(view, chosen))
    tensors = [makers.folder_tensor(tensor) for tensor in pass_order(view)]
    small: dict[str, bytes] = dict(repaired.files)
    word = options.scheme_word
    if options.form == "modelopt":
        word = MODELOPT_WORDS[word]
        declared = modelopt_config(repaired, view, chosen, word)
        text = json.dumps(modelopt_file(repaired, view, chosen, word), indent=4)
        small["hf_quant_config.json"] = text.encode()
    else:
        declared = compressed_config(repaired, view, chosen, word)
    small["config.json"] = dump_json(_config(repaired, view, declared))
    return plan_folder(
        "nvfp4",
        "W4A4_NVFP4" if options.input_scales else "NVFP4",
        tensors,
        small,
        max_shard=options.max_shard,
        parameters=view.parameters,
        notes=[
            *config_notes(view),
            *([_ROUNDED] if view.wide else []),
            *left_open,
            *_notes(view, options, chosen, evidence),
            *(feedback_notes(tensors) if options.feedback else []),
        ],
        details={
            "layout": options.form,
            "scheme": word,
            "scope": options.scope,
            "scale_search": options.scale_search,
            "importance_matrix": options.importance.label if options.importance else None,
            "mtp": {"layers": repaired.mtp_layers, "origin": repaired.mtp_origin},
            "quantized": _quantized(view, chosen, tensors),
        },
        assignment=assignment,
        evidence=evidence,
    )


def _config(repaired: Repaired, view: ModelView, declared: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the declaration; of a float32 model, what is kept is bfloat16."""
    config = declaring(repaired, view, declared)
    if view.wide:
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            part.update({key: "bfloat16" for key in ("dtype", "torch_dtype") if key in part})
    return config


@dataclass(frozen=True)
class _Makers:
    """What makes stored tensors; ``fused`` says which tensors have a global scale with which."""

    repaired: Repaired
    options: Nvfp4Options
    chosen: Mapping[str, str]
    evidence: Evidence
    fused: Mapping[str, tuple[str, ...]]

    def folder_tensor(self, tensor: ModelTensor) -> FolderTensor:
        algo = self.chosen.get(tensor.name)
        if algo is None:
            rounded = self.repaired.view().wide and tensor.role not in _FLOAT32
            return as_it_is(self.repaired, tensor, "BF16" if rounded else tensor.data.dtype)
        modules, (rows, columns) = modules_of(self.repaired, tensor), tensor.shape[-2:]
        if algo == FP8 and self.options.form != "modelopt":
            return as_fp8(self.repaired, tensor, Fp8Options(self.options.form))
        stored: StoredType
        needs = [Need(Kind.LARGEST, self.fused[tensor.name])]
        if algo == FP8 or self.options.scale_search == "importance":
            needs += self.evidence.needed(Kind.INPUT_SQUARES, tensor.name)
        if self.options.input_scales:
            kind = Kind.INPUT_LARGEST if self.options.every_expert else Kind.SENT_LARGEST
            needs.append(Need(kind, (tensor.name,)))
        if algo == FP8:
            specs = [fp8_specs(module, rows, columns) for module in modules]
            stored = Fp8Matrix()
        else:
            layout, inputs = LAYOUTS[self.options.form], self.options.input_scales
            specs = [nvfp4_specs(layout, module, rows, columns, inputs=inputs) for module in modules]
            stored = Nvfp4(layout.divides, "max" if self.options.scale_search == "max" else "mse", inputs)
        streams = tuple(zip(*specs, strict=True))
        made = FolderTensor(tensor.name, tensor.shape, tensor.data, stored, streams, needs=tuple(needs))
        return with_feedback(made, tensor, self.evidence) if self.options.feedback else made


def _quantized(
    view: ModelView, chosen: Mapping[str, str], tensors: Sequence[FolderTensor]
) -> dict[str, dict[str, Any]]:
    algos: dict[str, set[str]] = {}
    for tensor in view:
        if tensor.name in chosen:
            algos.setdefault(tensor.role.value, set()).add(chosen[tensor.name])
    counts = by_role(view, chosen, tensors)
    return {role: {"algo": " and ".join(sorted(algos[role])), **counts[role]} for role in counts}


def _notes(
    view: ModelView, options: Nvfp4Options, chosen: Mapping[str, str], evidence: Evidence
) -> list[str]:
    notes = []
    without = [name for name in chosen if evidence.of(Kind.INPUT_SQUARES, name) is None]
    if options.scale_search == "importance" and without:
        notes.append(
            f"the importance matrix has nothing for {len(without)} of {len(chosen)} tensors "
            f"({without[0]} and others), whose columns count alike"
        )
    fp8 = [name for name, algo in chosen.items() if algo == FP8 and options.form == "modelopt"]
    if fp8 and not options.input_scales and not any(name not in without for name in fp8):
        notes.append(
            "FP8 activations have the scale 1: no importance matrix says how large they are; "
            "with one they are fitted"
        )
    if options.input_scales:
        notes.append("W4A4: activations are rounded to 4 bits where it runs; scales of inputs from a text")
    if view.mtp_layers:
        notes.append("the MTP head is kept as it is and listed as not quantized")
    return notes
