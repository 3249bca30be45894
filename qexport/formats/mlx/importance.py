"""Importance of MLX modules from a matrix that names GGUF tensors, the form that imatrix files have.

Names and column orders are llama.cpp's; the columns go back to the checkpoint's order here. The embedding has
none: nothing is multiplied with it by column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.families.roles import Role
from qexport.formats.gguf.arch import arch_of, arrangement_of, gguf_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from qexport.evidence.imatrix_file import ImportanceMatrix
    from qexport.families.view import ModelTensor, ModelView


def importance_of(
    view: ModelView, tensors: Iterable[ModelTensor], matrix: ImportanceMatrix | None, notes: list[str]
) -> dict[str, np.ndarray]:
    """Importance by canonical name, float32 ``(matrices, columns)``, for the ``tensors`` that have any.

    Args:
        tensors: those that will be quantized.
        notes: what is missing is said there.

    Raises:
        InputError: the matrix was made for another model.
    """
    if matrix is None:
        return {}
    import numpy as np

    arch = arch_of(view)
    found: dict[str, np.ndarray] = {}
    missing: list[str] = []
    for tensor in tensors:
        matrices = tensor.shape[0] if len(tensor.shape) == 3 else 1
        name = gguf_name(arch, view, tensor)
        if tensor.role is Role.TOKEN_EMBD:
            rows = None
        else:
            rows = matrix.rows_for(name, matrices, tensor.shape[-1])
        if rows is None:
            missing.append(name)
            continue
        order = arrangement_of(arch, view, tensor).column_order
        if order is not None:
            restored = np.empty_like(rows)
            restored[:, order] = rows
            rows = restored
        found[tensor.name] = np.ascontiguousarray(rows, np.float32)
    if not found:
        raise InputError(
            "the importance matrix names none of this model's tensors: it was made for another model",
            hint="Make one for this model with `qexport imatrix`, or leave --importance out.",
        )
    if missing:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        notes.append(
            f"the importance matrix has nothing for {len(missing)} of {len(found) + len(missing)} tensors; "
            f"they are quantized as mlx-lm does: {shown}"
        )
    return found
