"""One tensor of the view as MLX stores it: packed words, scales and biases, or plain floats.

mlx-lm adds 1 to a norm when it loads it, in the dtype it has, and casts everything later; both roundings are
made here, in this order. A convolution's kernel goes from ``[channels, 1, width]`` to
``[channels, width, 1]``, which are the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.checkpoint.shards import TensorSpec
from qexport.codecs.contract import Float, MlxAffine, MlxFloat
from qexport.families.roles import Role
from qexport.formats.folder import FolderTensor
from qexport.formats.mlx.dialect import module_path
from qexport.formats.plan import Arrangement

if TYPE_CHECKING:
    from qexport.evidence.store import Need
    from qexport.families.view import ModelTensor
    from qexport.formats.mlx.options import Scheme


def quantized(
    tensor: ModelTensor, name: str, scheme: Scheme, dtype: str | None, needs: tuple[Need, ...] = ()
) -> FolderTensor:
    """A matrix, or a stack of experts, quantized.

    Args:
        tensor: rows are a multiple of the group.
        name: ends in ``.weight``; scales and biases stand beside.
        scheme: how.
        dtype: ``BF16``, ``F16`` or ``F32`` of scales and biases, ``None`` for that of the tensor.
        needs: of affine groups.
    """
    *outer, columns = tensor.shape
    dtype = dtype or tensor.data.dtype
    path = module_path(name)
    groups = (*outer, columns // scheme.group_size)
    words = TensorSpec(f"{path}.weight", "U32", (*outer, columns * scheme.bits // 32))
    if scheme.mode != "affine":
        streams = ((words,), (TensorSpec(f"{path}.scales", "U8", groups),))
        return FolderTensor(name, tensor.shape, tensor.data, MlxFloat(scheme.mode, dtype), streams)
    stored = MlxAffine(scheme.bits, scheme.group_size, dtype)
    beside = tuple((TensorSpec(f"{path}.{part}", dtype, groups),) for part in ("scales", "biases"))
    return FolderTensor(name, tensor.shape, tensor.data, stored, ((words,), *beside), needs=needs)


def plain(tensor: ModelTensor, name: str, dtype: str | None, *, add_one: bool = False) -> FolderTensor:
    """A tensor as floats.

    Args:
        dtype: ``None`` keeps the tensor's.
        add_one: store the norm with the 1 added.
    """
    source = tensor.data.dtype
    dtype = dtype or source
    stored = Float(dtype, through=source if add_one and source == "BF16" and dtype != source else None)
    shape = tensor.shape
    if tensor.role is Role.LINEAR_CONV:
        shape = (shape[0], shape[2], shape[1])
    arrangement = Arrangement(op="add_one" if add_one else "none")
    streams = ((TensorSpec(name, dtype, shape),),)
    return FolderTensor(name, tensor.shape, tensor.data, stored, streams, arrangement)
