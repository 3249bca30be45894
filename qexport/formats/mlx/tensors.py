"""One tensor of the view as MLX stores it: packed words, scales and biases, or plain floats.

mlx-lm adds 1 to a norm when it loads it, in the dtype it has, and casts everything later; both roundings are
made here, in this order. Of a convolution's kernel the channels go last: ``[channels, 1, width]`` of linear
attention has the same bytes then, a vision tower's patches ``[width, 3, 2, 16, 16]`` have not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qexport.checkpoint.shards import TensorSpec
from qexport.codecs.contract import Float, MlxAffine, MlxFloat
from qexport.families.roles import Role
from qexport.families.vision import channels_last, channels_last_order
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
    shape, arrangement = tensor.shape, Arrangement(op="add_one" if add_one else "none")
    kernel = is_kernel(tensor.role, shape)
    spec = TensorSpec(name, dtype, channels_last(shape) if kernel else shape)
    if kernel:
        arrangement = kernel_arrangement(shape)
    return FolderTensor(name, arrangement.shape or shape, tensor.data, stored, ((spec,),), arrangement)


def is_kernel(role: Role, shape: tuple[int, ...]) -> bool:
    """Whether it is the kernel of a convolution."""
    return role in (Role.LINEAR_CONV, Role.VISION_PATCH) and len(shape) > 2


def kernel_arrangement(shape: tuple[int, ...]) -> Arrangement:
    """Of a kernel, whose outputs are rows: channels last."""
    if shape[1] == 1:
        return Arrangement()
    return Arrangement((shape[0], math.prod(shape[1:])), column_order=channels_last_order(shape))
