"""The repaired checkpoint as an artifact: safetensors in the source's dtype, under published names.

This is what ``qexport fix`` writes, and what transformers, vLLM and llama.cpp's converter then read without a
patch. Tensors stay in the shards they came in; a grafted head gets a shard of its own, as base repositories
keep theirs. Left out: resharding, and any change of a value (but for stray float32 matrices, which the doctor
has marked to be rounded).
"""

from __future__ import annotations

from collections.abc import Iterable

from qexport.checkpoint.shards import TensorSpec, group_like, plan_shards
from qexport.checkpoint.tensors import LogicalTensor
from qexport.codecs.contract import Float
from qexport.doctor import Finding, Repaired
from qexport.doctor.layout import ExpertLayout, convert_experts
from qexport.doctor.turned import as_published, underneath
from qexport.errors import InputError
from qexport.families.names import published_name
from qexport.formats.gguf.file_name import model_stem
from qexport.formats.plan import Arrangement, ArtifactPlan, PlannedFile, PlannedTensor, Region


def plan_merged(repaired: Repaired, *, findings: Iterable[Finding] = ()) -> ArtifactPlan:
    """Plan the repaired checkpoint: weights, index, and every small file.

    Small files and the index are files of the plan that consist of their header alone.

    Args:
        findings: for the receipt.

    Raises:
        InputError: tensors and config do not fit together.
    """
    repaired.view()
    named = {
        published_name(t.name, repaired.family, wrapper=repaired.wrapper): t for t in _in_order(repaired)
    }
    specs = [TensorSpec(name, tensor.dtype, tensor.shape) for name, tensor in named.items()]
    layout = plan_shards(group_like(specs, _origins(repaired, named)))
    files = [PlannedFile(shard.file, shard.size, shard.header) for shard in layout.shards]
    tensors: list[PlannedTensor] = []
    for number, shard in enumerate(layout.shards):
        for name, offset in shard.offsets.items():
            source = named[name]
            region = Region(number, offset, source.nbytes)
            stored = Float(source.dtype)
            tensors.append(PlannedTensor(name, source.shape, source, Arrangement(), stored, ((region,),)))
    small = dict(repaired.files)
    if layout.index is not None:
        small[layout.index_file] = layout.index
    files += [PlannedFile(name, len(data), data) for name, data in sorted(small.items())]
    return ArtifactPlan(
        kind="merged",
        label=model_stem(repaired.label),  # of a Hub model without owner and commit: it goes into tags
        files=tuple(files),
        tensors=tuple(tensors),
        details={
            "mtp": {"layers": repaired.mtp_layers, "origin": repaired.mtp_origin},
            "changed_files": list(repaired.files.changed),
            "findings": [finding.to_json() for finding in findings],
        },
    )


def _in_order(repaired: Repaired) -> Iterable[LogicalTensor]:
    """Stored order: by file and offset, as the source has them; what is not the source's comes last."""
    places = {name: place for place, name in enumerate(repaired.source.tensors)}

    def place(tensor: LogicalTensor) -> tuple[bool, int]:
        mine = _is_own(repaired, tensor)
        return not mine, places[tensor.pieces[0].name] if mine else 0

    return sorted(_published(repaired), key=place)


def _published(repaired: Repaired) -> Iterable[LogicalTensor]:
    """Experts as readers of the family's multimodal form know them, or of the text model's own family."""
    tensors = repaired.tensors
    if not repaired.family.turned_experts:
        return tensors.values()
    if not repaired.wrapper:
        return convert_experts(tensors, ExpertLayout.SINGLE).values()
    fused = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    return [as_published(t) if name.endswith(fused) else t for name, t in tensors.items()]


def _is_own(repaired: Repaired, tensor: LogicalTensor) -> bool:
    return underneath(tensor.pieces[0].checkpoint) is underneath(repaired.source)


def _origins(repaired: Repaired, named: dict[str, LogicalTensor]) -> dict[str, str]:
    """The source's file of each tensor that is its own."""
    stored = repaired.source.tensors
    origins: dict[str, str] = {}
    for name, tensor in named.items():
        first = tensor.pieces[0]
        if _is_own(repaired, tensor):
            if first.name not in stored:
                raise InputError(f"{repaired.label} has no tensor {first.name!r} any more.")
            origins[name] = stored[first.name].file
    return origins
