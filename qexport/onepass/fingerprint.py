"""What an artifact depends on, as a hash: source, plan, options, version. Same hash, same bytes."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from qexport import __version__
from qexport.checkpoint.tensors import checkpoints_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.formats.plan import ArtifactPlan


def fingerprint(plan: ArtifactPlan, options: Mapping[str, Any]) -> str:
    """SHA-256, as hex, of everything that the bytes of ``plan``'s files follow from.

    Args:
        options: what the plan does not show: hashes of importance matrices, searches.

    The source's weights are not read: files count by name, size and time of change, or by commit.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        digest.update(json.dumps(value, sort_keys=True, default=str).encode())
        digest.update(b"\n")

    add([__version__, plan.kind, plan.label, dict(options)])
    for file in plan.files:
        add([file.name, file.size, hashlib.sha256(file.header).hexdigest()])
    for tensor in plan.tensors:
        pieces = [(p.name, p.start, p.stop) for p in _ends(tensor.source.pieces)]
        regions = [[(r.file, r.offset, r.nbytes) for r in _ends(stream)] for stream in tensor.streams]
        arranged = tensor.arrangement
        orders = [
            None if order is None else hashlib.sha256(order.tobytes()).hexdigest()
            for order in (arranged.row_order, arranged.column_order)
        ]
        stored = repr((tensor.stored, tensor.needs))
        add([tensor.name, tensor.shape, stored, arranged.op, orders, pieces, regions])
    for checkpoint in checkpoints_of(tensor.source for tensor in plan.tensors):
        add([checkpoint.label, checkpoint.identity()])
        add([(t.name, t.dtype, t.shape, t.file, t.start) for t in checkpoint.tensors.values()])
    return digest.hexdigest()


def _ends(items: Sequence[Any]) -> Sequence[Any]:
    """The first, the last and their number stand for hundreds of experts that follow a rule."""
    return items if len(items) < 3 else [items[0], items[-1]]
