"""The GGUF twin of a quantized folder: a file with the folder's own numbers, for llama.cpp to run.

NVFP4 keeps its codes and scales, moved into ggml's blocks (:mod:`qexport.codecs.nvfp4_blocks`), where rows
are whole blocks of 64 and llama.cpp knows of scales; matrices that are packed otherwise are decoded to F32,
which holds every product of a code and its scales; floats keep their dtype. So nothing is rounded a second
time, and what the file says is what the folder says. llama.cpp's converter reads NVFP4 folders to the same
bytes.

The exact size is known before anything is written, as that of every plan.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qexport.artifacts.rows import DecodedCheckpoint
from qexport.artifacts.weights import StoredWeight
from qexport.assign.assignment import Assignment
from qexport.checkpoint.memory import MemoryCheckpoint
from qexport.checkpoint.tensors import LogicalTensor, Piece
from qexport.codecs.contract import Float, Moved, Nvfp4Blocks
from qexport.codecs.ggml_types import ggml_type
from qexport.formats.gguf.arch import arch_of
from qexport.formats.gguf.mmproj import plan_mmproj
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import outputs_of, plan_gguf
from qexport.formats.gguf.scaled import NVFP4, scale_name, takes_scales
from qexport.formats.plan import Arrangement, PlannedTensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import torch

    from qexport.artifacts.artifact import Opened
    from qexport.artifacts.rows import StoredPart
    from qexport.formats.gguf.scaled import Untyped
    from qexport.formats.plan import ArtifactPlan


_RUN = 16


def plan_twin(artifact: Opened) -> ArtifactPlan:
    """Plan the file; ``details["tensor_types"]`` says what its tensors are.

    Raises:
        InputError: llama.cpp knows no such model, or the folder cannot be read.
    """
    view = artifact.view()
    arch = arch_of(view)
    types: dict[str, str] = {}
    for output in outputs_of(arch, view):
        if not output.canonical:
            continue
        weights = _weights(artifact, output.source)
        if takes_scales(arch, output.role) and _moves(output, weights):
            types[output.canonical] = NVFP4
        elif output.source.dtype != "BF16":
            types[output.canonical] = "F32"
    given = Assignment("gguf", "twin", types)
    (plan,) = plan_gguf(view, ["BF16"], GgufOptions(types_from=given, no_mmproj=True))
    tensors: list[PlannedTensor] = []
    for tensor in plan.tensors:
        moved = isinstance(tensor.stored, Nvfp4Blocks)
        tensors += _moved(tensor, _weights(artifact, tensor.source)) if moved else [tensor]
    return replace(plan, tensors=tuple(tensors))


def plan_twin_tower(artifact: Opened) -> tuple[ArtifactPlan, ...]:
    """The plan of its vision tower's file, in F32, which holds whatever the folder's says; none without one.

    Raises:
        InputError: llama.cpp could not read the tower.
    """
    view = artifact.view()
    return () if view.vision is None else plan_mmproj(view, GgufOptions(mmproj=("F32",)))


def _weights(artifact: Opened, source: LogicalTensor) -> list[StoredWeight]:
    """What is stored of the tensor's pieces; none where some of it is no weight of a folder."""
    found = [artifact.weights.get(piece.name) for piece in source.pieces]
    stored = [weight for weight in found if isinstance(weight, StoredWeight)]
    return stored if len(stored) == len(found) else []


def _moves(output: Untyped, weights: Sequence[StoredWeight]) -> bool:
    """Whether codes and scales can be moved as they are."""
    shape, order = output.shape, output.arrangement
    if not ggml_type(NVFP4).fits(shape[-1]) or (order.shape or shape)[-1] != output.source.shape[-1]:
        return False
    if not weights or not all(_is_nvfp4(weight) for weight in weights):
        return False
    matrices = shape[0] if len(shape) == 3 else 1
    if matrices not in (1, len(weights)) or (matrices == 1 and len({_shared(each) for each in weights}) > 1):
        return False
    return order.column_order is None or _runs(order.column_order) is not None


def _is_nvfp4(weight: StoredWeight) -> bool:
    if weight.form.kind != "nvfp4" or {"scales", "pre_quant_scale"} & weight.parts.keys():
        return False
    return _shared_part(weight).shape in ((), (1,))


def _shared_part(weight: StoredWeight) -> StoredPart:
    parts = weight.parts
    return parts["weight_global_scale"] if "weight_global_scale" in parts else parts["weight_scale_2"]


def _shared(weight: StoredWeight) -> float:
    """The scale of the whole matrix, to multiply by, as float32."""
    import torch

    scale = _shared_part(weight).whole().float().view(())
    return float(torch.tensor(1.0) / scale if "weight_global_scale" in weight.parts else scale)


def _runs(order: np.ndarray) -> np.ndarray | None:
    """The order of runs of 16 columns, where columns move in such runs only."""
    import numpy as np

    first = order[::_RUN]
    whole = (first[:, None] + np.arange(_RUN)).ravel()
    return first // _RUN if (first % _RUN == 0).all() and np.array_equal(whole, order) else None


def _moved(tensor: PlannedTensor, weights: Sequence[StoredWeight]) -> list[PlannedTensor]:
    """The blocks, and the scales beside them."""
    import torch

    order, kind = tensor.arrangement, ggml_type(NVFP4)
    runs = None if order.column_order is None else _runs(order.column_order)
    packed = DecodedCheckpoint(tensor.name, {weight.name: _Blocks(weight, runs) for weight in weights})
    width = kind.row_bytes(tensor.shape[-1])
    pieces = tuple(Piece(packed, piece.name, piece.start, piece.stop) for piece in tensor.source.pieces)
    source = LogicalTensor(tensor.source.name, (*tensor.source.shape[:-1], width), "U8", pieces)
    shape = None if order.shape is None else (*order.shape[:-1], width)
    rows = Arrangement(shape=shape, row_order=order.row_order)
    (blocks,), scales = tensor.streams
    name = scale_name(tensor.name)
    count = tensor.shape[0] if len(tensor.shape) == 3 else 1
    shared = torch.tensor([_shared(weight) for weight in weights][:count])
    numbers = MemoryCheckpoint(name, {name: shared}).logical(name)
    return [
        PlannedTensor(tensor.name, (*tensor.shape[:-1], width), source, rows, Moved(NVFP4), ((blocks,),)),
        PlannedTensor(name, (count,), numbers, Arrangement(), Float("F32"), (scales,)),
    ]


class _Blocks:
    """The rows of one matrix as bytes of ggml's blocks; ``runs`` is the order of its runs of columns."""

    dtype = "U8"

    def __init__(self, weight: StoredWeight, runs: np.ndarray | None) -> None:
        parts: Mapping[str, Any] = weight.parts
        self._codes: StoredPart = parts.get("weight_packed") or parts["weight"]
        self._scales: StoredPart = parts["weight_scale"]
        self._runs = runs
        columns = self._codes.shape[-1] * 2
        self.shape = (*self._codes.shape[:-1], ggml_type(NVFP4).row_bytes(columns))

    def read(self, start: int, stop: int) -> torch.Tensor:
        import torch

        from qexport.codecs.nvfp4_blocks import blocks_of

        codes = self._codes.rows(start, stop).view(torch.uint8).numpy()
        scales = self._scales.rows(start, stop).view(torch.uint8).numpy()
        if self._runs is not None:
            codes = codes.reshape(len(codes), -1, _RUN // 2)[:, self._runs].reshape(codes.shape)
            scales = scales[:, self._runs]
        return torch.from_numpy(blocks_of(codes, scales))
