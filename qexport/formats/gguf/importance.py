"""The border to llama.cpp's importance matrices: names and column orders of GGUF tensors; the artifact.

Calibration sums squared inputs under canonical names, in the column order of the checkpoint. A GGUF tensor
has another name, and ``ssm_out`` its columns in another order (value heads tiled); its importance likewise.
One function goes out (:func:`gguf_importance`), one comes in (:func:`evidence_of`). What was collected goes
both ways: so a run that finds the file of an earlier one comes to the same bytes.
The MTP block stands behind the trunk's layers (``blk.N.nextn.eh_proj.weight`` and so on); llama-imatrix has
nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.evidence.imatrix_file import ImportanceMatrix, imatrix_bytes, imatrix_size
from qexport.evidence.output import output_of
from qexport.evidence.sensitivity import Sensitivity, Summed
from qexport.evidence.store import NOTHING, Evidence, Kind
from qexport.families.roles import NORM_ROLES, Block, Role
from qexport.formats.gguf.arch import arch_of, arrangement_of, gguf_name
from qexport.formats.plan import ArtifactPlan, PlannedFile

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

    from qexport.families.view import ModelTensor, ModelView


_NO_PRODUCT = NORM_ROLES | {
    Role.LINEAR_CONV,
    Role.LINEAR_A_LOG,
    Role.LINEAR_DT_BIAS,
    Role.MTP_EMBED,  # a table, and its output, which calibration does not go through
    Role.MTP_OUTPUT,
}


def gguf_importance(
    view: ModelView,
    sums: Mapping[str, np.ndarray],
    counts: Mapping[str, np.ndarray],
    *,
    datasets: Iterable[str],
    chunk_count: int,
    chunk_size: int,
    label: str,
    totals: Mapping[str, np.ndarray] | None = None,
    sensitivity: Sensitivity | None = None,
) -> ImportanceMatrix:
    """Statistics of canonical tensors as an importance matrix of the GGUF file.

    Args:
        sums: sums of squared inputs, ``(matrices, columns)`` by canonical name.
        counts: tokens seen, ``(matrices,)`` by canonical name.
        totals: sums of inputs, shaped like ``sums``, where they were collected.
        sensitivity: sums of gradients by canonical name, rows in the order of the checkpoint.
    """
    import numpy as np

    arch = arch_of(view)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    inputs: dict[str, np.ndarray] = {}
    for tensor in _products(view):
        if tensor.name not in sums:
            continue
        order = arrangement_of(arch, view, tensor).column_order
        name = gguf_name(arch, view, tensor)
        rows = sums[tensor.name] if order is None else sums[tensor.name][:, order]
        found[name] = (rows.astype(np.float32, copy=False), counts[tensor.name])
        if totals is not None:
            entered = totals[tensor.name] if order is None else totals[tensor.name][:, order]
            inputs[name] = entered.astype(np.float32, copy=False)
    return ImportanceMatrix(
        sums={name: found[name][0] for name in sorted(found, key=str.encode)},
        counts={name: found[name][1] for name in sorted(found, key=str.encode)},
        datasets=tuple(datasets),
        chunk_count=chunk_count,
        chunk_size=chunk_size,
        form="gguf",
        label=label,
        totals={name: inputs[name] for name in sorted(inputs, key=str.encode)},
        sensitivity=None if sensitivity is None else _outward(view, sensitivity),
    )


def _outward(view: ModelView, sensitivity: Sensitivity) -> Sensitivity:
    """The same under the names of GGUF tensors, gradients in the order of their rows."""
    arch = arch_of(view)
    tables: dict[Summed, dict[str, np.ndarray]] = {table: {} for table in sensitivity.tables}
    for tensor in view:
        for table in sensitivity.tables:
            values = sensitivity.tables[table].get(tensor.name)
            if values is not None:
                order = _row_order(view, tensor) if table is Summed.GRADIENTS else None
                name = gguf_name(arch, view, tensor)
                tables[table][name] = values if order is None else values[:, order]
    return replace(sensitivity, tables=tables)


def _matrices(tensor: ModelTensor) -> int:
    """How many matrices a tensor holds: a stack of experts has several."""
    return tensor.shape[0] if len(tensor.shape) == 3 else 1


def _inward(
    view: ModelView, tensor: ModelTensor, name: str, matrix: ImportanceMatrix
) -> dict[Kind, np.ndarray]:
    """What the matrix says of a tensor's sensitivity, there under ``name``: means, by kinds of the store."""
    import numpy as np

    found: dict[Kind, np.ndarray] = {}
    if (beside := matrix.sensitivity) is None:
        return found
    matrices = _matrices(tensor)
    tokens = max(1, beside.draft_tokens if tensor.block is Block.MTP else beside.tokens)
    rows, columns = (matrices, tensor.shape[-2]), (1, tensor.shape[-1])
    for table, kind, shape in (
        (Summed.GRADIENTS, Kind.OUTPUT_GRADIENTS, rows),
        (Summed.HEAD_INPUTS, Kind.HEAD_INPUTS, columns),
        (Summed.LOOKUPS, Kind.LOOKUPS, rows),
        (Summed.LOOKUP_GRADIENTS, Kind.LOOKUP_GRADIENTS, columns),
    ):
        sums = beside.tables.get(table, {}).get(name)
        if sums is None:
            continue
        if sums.shape != shape:
            raise InputError(
                f"{matrix.label} has {sums.shape} values for {name}.{table}, not {shape}: "
                "it was made for another model",
                hint="Make one for this model, or leave it out.",
            )
        if table is Summed.GRADIENTS and (order := _row_order(view, tensor)) is not None:
            sums = sums[:, np.argsort(order)]
        whole = np.float32(sums.sum() if table is Summed.LOOKUPS else tokens)
        found[kind] = np.ascontiguousarray(sums / max(whole, np.float32(1)), np.float32)
    pair, seen = (beside.tables.get(table, {}).get(name) for table in (Summed.JOINT, Summed.TOKENS))
    if Kind.OUTPUT_GRADIENTS in found and pair is not None and seen is not None:
        if (pair.shape, seen.shape) != ((matrices, 2), (matrices, 1)):
            raise InputError(f"{matrix.label}: {name}.{Summed.JOINT} or {Summed.TOKENS} has another size")
        returned = beside.tables[Summed.GRADIENTS][name].sum(1, keepdims=True, dtype=np.float64)
        apart = returned * pair[:, 1:]
        together = np.divide(seen * pair[:, :1], apart, out=np.ones_like(apart), where=apart > 0)
        found[Kind.JOINT] = together.astype(np.float32)
    return found


def _row_order(view: ModelView, tensor: ModelTensor) -> np.ndarray | None:
    """For each row of the GGUF matrix, the checkpoint's."""
    return arrangement_of(arch_of(view), view, tensor).row_order


def evidence_of(view: ModelView, matrix: ImportanceMatrix | None) -> Evidence:
    """What the matrix says of the model's tensors, as plans and encoders take it; columns as stored.

    The reverse of :func:`gguf_importance`, for all formats.

    Raises:
        InputError: the matrix names none of the model's tensors or has other sizes, or GGUF does not know
            the model, so that its names are not known either.
    """
    if matrix is None:
        return NOTHING
    import numpy as np

    arch = arch_of(view)
    found: dict[str, np.ndarray] = {}
    tables: dict[Kind, dict[str, np.ndarray]] = {Kind.INPUT_SQUARES: found}
    for tensor in view:
        if tensor.block is Block.VISION or tensor.role in _NO_PRODUCT or len(tensor.shape) < 2:
            continue
        name = gguf_name(arch, view, tensor)
        for kind, table in _inward(view, tensor, name, matrix).items():
            tables.setdefault(kind, {})[tensor.name] = table
        values = matrix.entries.get(name)
        if values is None or (tensor.role is Role.TOKEN_EMBD and values.size != tensor.shape[-1]):
            continue  # of the embedding llama-quantize lets it pass
        rows = matrix.rows_for(name, _matrices(tensor), tensor.shape[-1])
        order = arrangement_of(arch, view, tensor).column_order
        found[tensor.name] = np.ascontiguousarray(rows if order is None else rows[:, np.argsort(order)])
    if not found:
        raise InputError(
            f"{matrix.label} names none of this model's tensors: it was made for another model",
            hint="Make one for this model with `qexport imatrix MODEL`, or leave it out.",
        )
    return Evidence(tables)


def uncollected(view: ModelView) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Sums and counts as a pass would collect them, all ones: enough to plan sizes before it has run."""
    import numpy as np

    sums, counts = {}, {}
    for tensor in _products(view):
        matrices = _matrices(tensor)
        sums[tensor.name] = np.broadcast_to(np.float32(1), (matrices, tensor.shape[-1]))
        counts[tensor.name] = np.ones(matrices, np.int64)
    return sums, counts


def unfelt(view: ModelView, tokens: int, draft_tokens: int, texts: tuple[str, ...]) -> Sensitivity:
    """A sensitivity as a pass would collect it, all ones; see :func:`uncollected`."""
    import numpy as np

    embedding, output = view.find(Role.TOKEN_EMBD), output_of(view)
    assert embedding is not None
    one = np.float32(1)
    tables: dict[Summed, dict[str, np.ndarray]] = {table: {} for table in Summed}
    for tensor in (*_products(view), output):
        matrices = _matrices(tensor)
        tables[Summed.GRADIENTS][tensor.name] = np.broadcast_to(one, (matrices, tensor.shape[-2]))
        tables[Summed.TOKENS][tensor.name] = np.broadcast_to(one, (matrices, 1))
        tables[Summed.JOINT][tensor.name] = np.broadcast_to(one, (matrices, 2))
    tables[Summed.HEAD_INPUTS][output.name] = np.broadcast_to(one, (1, output.shape[1]))
    tables[Summed.LOOKUP_GRADIENTS][embedding.name] = np.broadcast_to(one, (1, embedding.shape[1]))
    tables[Summed.LOOKUPS][embedding.name] = np.broadcast_to(one, (1, embedding.shape[0]))
    return Sensitivity(tables, tokens, draft_tokens, texts)


def _products(view: ModelView) -> Iterable[ModelTensor]:
    """The matrices inside blocks that something is multiplied with."""
    for tensor in view:
        inside = tensor.block in (Block.TRUNK, Block.MTP)
        if inside and tensor.role not in _NO_PRODUCT and len(tensor.shape) >= 2:
            yield tensor


def cold_experts(matrix: ImportanceMatrix, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Of these tensors, those with experts that saw no token: how many, of how many."""
    found = {}
    for name in names:
        counts = matrix.counts.get(name)
        if counts is not None and len(counts) > 1 and not counts.all():
            found[name] = (int((counts == 0).sum()), len(counts))
    return found


def plan_imatrix(
    matrix: ImportanceMatrix, name: str, details: Mapping[str, Any] | None = None
) -> ArtifactPlan:
    """The matrix as an artifact of one file; its bytes are its header. Of one to come, the size is known.

    Args:
        name: of the file.
        details: where it came from, for the receipt.
    """
    data = b"" if matrix.to_come else imatrix_bytes(matrix)
    cold = cold_experts(matrix, matrix.sums)
    notes = [
        f"{name}: {few} of {many} experts saw no token; they are quantized as if all columns mattered alike"
        for name, (few, many) in cold.items()
    ]
    return ArtifactPlan(
        kind="imatrix",
        label="imatrix",
        files=(PlannedFile(name, len(data) or imatrix_size(matrix), data),),
        tensors=(),
        notes=tuple(notes),
        details={
            "entries": len(matrix.sums),
            "datasets": list(matrix.datasets),
            "chunks": matrix.chunk_count,
            "chunk_size": matrix.chunk_size,
            **(details or {}),
        },
    )
