"""A folder of safetensors as an artifact: MLX, FP8, NVFP4 and whatever else publishes weights as a folder.

A format says which tensors of the view become which stored tensors, as which type; here they are given
to shards, headers and an index, and every small file joins the plan. Stored tensors follow the order they are
given in (that of the pass), so that files are written front to back; only those whose size is no multiple of
8 bytes come last, wider dtypes first, which keeps every tensor at a multiple of its item size as readers that
map files like it. All that one tensor of the view becomes (codes, scales, every expert) lies in one shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.checkpoint.shards import TensorSpec, plan_shards
from qexport.evidence.store import NOTHING, Evidence, Need
from qexport.formats.plan import Arrangement, ArtifactPlan, PlannedFile, PlannedTensor, Region

if TYPE_CHECKING:
    from qexport.assign.assignment import Assignment
    from qexport.checkpoint.tensors import LogicalTensor
    from qexport.codecs.contract import StoredType


SHARD_BYTES = 5 << 30  # what mlx-lm and save_pretrained limit a shard to


@dataclass(frozen=True)
class FolderTensor:
    """One tensor of the view, and what is stored of it.

    Attributes:
        name: what messages call it.
        shape: of the encoded matrix: ``(experts, rows, columns)`` for a stack.
        streams: for each stream of the type, the stored tensors that it fills one after another: one, or one
            for each expert.
    """

    name: str
    shape: tuple[int, ...]
    source: LogicalTensor
    stored: StoredType
    streams: tuple[tuple[TensorSpec, ...], ...]
    arrangement: Arrangement = field(default_factory=Arrangement)
    needs: tuple[Need, ...] = ()

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Every stored tensor."""
        return tuple(spec for stream in self.streams for spec in stream)


def plan_folder(
    kind: str,
    label: str,
    tensors: Sequence[FolderTensor],
    small: Mapping[str, bytes],
    *,
    max_shard: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
    parameters: int | None = None,
    always_index: bool = False,
    index_indent: int = 2,
    beside: Mapping[str, Sequence[FolderTensor]] | None = None,
    notes: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
    assignment: Assignment | None = None,
    evidence: Evidence = NOTHING,
) -> ArtifactPlan:
    """Plan the folder: shards, index, small files.

    Args:
        kind, label: of the artifact.
        tensors: in the order of the pass.
        small: other files by name, each written as it is.
        max_shard: bytes of tensor data in one file; what one view tensor becomes is never split.
        metadata: text for the headers, ``{"format": "pt"}`` by default.
        parameters: unquantized values, for the index.
        always_index: write the index for a single file, too.
        index_indent: of its JSON.
        beside: further safetensors files by name, for tensors that are not among the model's: the index does
            not know them.
        assignment: which the tensors follow.
        evidence: that the tensors' needs are met from.

    Raises:
        InputError: no tensors, a name twice, a header beyond what readers take.
    """
    groups = _groups(tensors, max_shard)
    layout = plan_shards(
        [[spec for tensor in group for spec in tensor.specs] for group in groups],
        metadata=metadata,
        parameters=parameters,
        keep_order=True,
        always_index=always_index,
        index_indent=index_indent,
    )
    shards = [(shard.file, shard, group) for shard, group in zip(layout.shards, groups, strict=True)]
    for name, group in (beside or {}).items():
        specs = [spec for tensor in group for spec in tensor.specs]
        shards.append((name, plan_shards([specs], metadata=metadata, keep_order=True).shards[0], list(group)))
    files = [PlannedFile(name, shard.size, shard.header) for name, shard, _ in shards]
    planned: list[PlannedTensor] = []
    for number, (_, shard, group) in enumerate(shards):
        for tensor in group:
            streams = tuple(
                tuple(Region(number, shard.offsets[spec.name], spec.nbytes) for spec in stream)
                for stream in tensor.streams
            )
            planned.append(
                PlannedTensor(
                    tensor.name,
                    tensor.shape,
                    tensor.source,
                    tensor.arrangement,
                    tensor.stored,
                    streams,
                    tensor.needs,
                )
            )
    texts = dict(small)
    if layout.index is not None:
        texts[layout.index_file] = layout.index
    files += [PlannedFile(name, len(data), data) for name, data in sorted(texts.items())]
    return ArtifactPlan(
        kind,
        label,
        tuple(files),
        tuple(planned),
        tuple(notes),
        dict(details or {}),
        assignment,
        evidence,
    )


def _groups(tensors: Sequence[FolderTensor], limit: int) -> list[list[FolderTensor]]:
    groups: list[list[FolderTensor]] = []
    room = 0
    for tensor in tensors:
        nbytes = sum(spec.nbytes for spec in tensor.specs)
        if not groups or nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(tensor)
        room -= nbytes
    return groups
