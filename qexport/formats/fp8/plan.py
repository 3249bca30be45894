"""The plan of an FP8 folder: published names, experts one by one, codes and scales beside each other.

Tensors outside the scope keep their dtype and their bytes. What a tensor of the view becomes is written in
the order of the pass; nothing is reshaped, so rows go straight from the source's shards through the encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.checkpoint.shards import TensorSpec
from qexport.codecs.contract import FP8_TILE, Fp8Rows, Fp8Tiles
from qexport.doctor.draft import dump_json
from qexport.errors import InputError
from qexport.formats.folder import FolderTensor, plan_folder
from qexport.formats.fp8.config import fp8_config
from qexport.formats.fp8.options import DYNAMIC, Fp8Options
from qexport.formats.fp8.scope import scope_of
from qexport.formats.limits import config_notes
from qexport.formats.linears import as_it_is, by_role, modules_of
from qexport.formats.order import pass_order

if TYPE_CHECKING:
    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor
    from qexport.formats.fp8.scope import Scope
    from qexport.formats.plan import ArtifactPlan


def plan_fp8(repaired: Repaired, options: Fp8Options | None = None) -> ArtifactPlan:
    """Plan the folder.

    Raises:
        InputError: tensors and config do not fit together, or no matrix can become FP8.
    """
    options = options or Fp8Options()
    view = repaired.view()
    scope = scope_of(repaired, view, options)
    if not scope.names:
        why = "; ".join(dict.fromkeys(scope.kept.values())) or "it has no linear layers that qexport knows"
        raise InputError(
            f"no matrix of {repaired.label} can become FP8: {why}",
            hint=f"Both sides of a matrix have to be multiples of {FP8_TILE}; --scheme {DYNAMIC} takes any.",
        )
    tensors = [_folder_tensor(repaired, tensor, scope, options) for tensor in pass_order(view)]
    config = fp8_config(repaired, view, scope, options)
    listed = config["quantization_config"]["modules_to_not_convert" if options.native else "ignore"]
    return plan_folder(
        kind="fp8",
        label=options.label,
        tensors=tensors,
        small={**repaired.files, "config.json": dump_json(config)},
        max_shard=options.max_shard,
        parameters=view.parameters,
        notes=[
            *config_notes(view),
            *(["the source is float32, and so is what is not FP8"] if view.wide else []),
            *scope.notes,
            *_notes(scope, options, view.mtp_layers),
        ],
        assignment=scope.types,
        details={
            "layout": "native" if options.native else "compressed-tensors",
            "scheme": None if options.native else options.label,
            "quantized": by_role(view, scope.names, tensors),
            "not_converted": listed,
            "mtp": {
                "layers": repaired.mtp_layers,
                "origin": repaired.mtp_origin,
                "quantized": bool(view.mtp_layers) and not options.keeps_mtp,
            },
            "changed_files": sorted({*repaired.files.changed, "config.json"}),
        },
    )


def _folder_tensor(
    repaired: Repaired, tensor: ModelTensor, scope: Scope, options: Fp8Options
) -> FolderTensor:
    if tensor.name not in scope.names:
        return as_it_is(repaired, tensor, tensor.data.dtype)
    return as_fp8(repaired, tensor, options)


def as_fp8(repaired: Repaired, tensor: ModelTensor, options: Fp8Options) -> FolderTensor:
    """A matrix, or experts one by one, as codes and scales in the names of the layout."""
    names = [f"{module}.weight" for module in modules_of(repaired, tensor)]
    (rows, columns), dtype = tensor.shape[-2:], tensor.data.dtype
    tiles = Fp8Tiles("native" if options.native else "compressed-tensors")
    stored = Fp8Rows() if options.dynamic else tiles
    shape, dtype = stored.scale_shape(rows, columns), stored.scale_dtype(dtype)
    suffix = "_scale_inv" if options.native else "_scale"
    codes = tuple(TensorSpec(name, stored.name, (rows, columns)) for name in names)
    scales = tuple(TensorSpec(name + suffix, dtype, shape) for name in names)
    return FolderTensor(tensor.name, tensor.shape, tensor.data, stored, (codes, scales))


def _notes(scope: Scope, options: Fp8Options, mtp_layers: int) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for role, why in scope.kept.items():
        reasons.setdefault(why, []).append(role.value)
    notes = [
        f"not FP8, and listed: {', '.join(roles)} ({why}; sides have to be multiples of {FP8_TILE})"
        for why, roles in reasons.items()
    ]
    if mtp_layers and options.keeps_mtp:
        why = "" if options.native else ", as compressed-tensors readers need it"
        notes.append(f"the MTP head keeps its dtype and is listed{why}")
    return notes
