"""Which tensors of a plan are rounded with error feedback: where it was asked for and inputs are known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.codecs.feedback import unit_of
from qexport.errors import some
from qexport.evidence.store import Kind, Need
from qexport.families.roles import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.codecs.contract import StoredType
    from qexport.evidence.store import Evidence
    from qexport.families.view import ModelTensor
    from qexport.formats.folder import FolderTensor
    from qexport.formats.plan import PlannedTensor


def feedback_needs(
    name: str, role: Role | None, stored: StoredType, columns: int, evidence: Evidence
) -> tuple[Need, ...]:
    """The product of the inputs of the tensor with this canonical name, if its type can use it.

    Those of the output matrix are known from what leaves the trunk; of all others where importance is. An
    embedding has none, though its columns may be weighed (``evidence.sensitivity.filled``).
    """
    unit = unit_of(stored)
    if unit is None or columns % unit or role is Role.TOKEN_EMBD:
        return ()
    if role is not Role.OUTPUT and evidence.of(Kind.INPUT_SQUARES, name) is None:
        return ()
    return (Need(Kind.INPUT_PRODUCTS, (name,)),)


def with_feedback(made: FolderTensor, tensor: ModelTensor, evidence: Evidence) -> FolderTensor:
    """A tensor of a folder with that need."""
    more = feedback_needs(tensor.name, tensor.role, made.stored, made.shape[-1], evidence)
    return replace(made, needs=(*made.needs, *more))


def feedback_notes(tensors: Sequence[FolderTensor | PlannedTensor]) -> list[str]:
    """What is said of quantized tensors that are rounded without."""
    packed = [t for t in tensors if unit_of(t.stored) is not None]
    left = [t.name for t in packed if all(need.kind is not Kind.INPUT_PRODUCTS for need in t.needs)]
    if not packed:
        return ["error feedback has no use in these types"]
    if not left:
        return []
    return [f"{len(left)} of {len(packed)} tensors are rounded without error feedback: {some(left, 4)}"]
