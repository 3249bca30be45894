"""The other way: packed rows of any ggml type back to float32, as ggml decodes them, bit for bit.

Verification runs the numbers that a file stands for through the original model, and tests measure errors
with them. Decoding is arithmetic on blocks that do not depend on each other: a plain loop per type is nearly
as fast as memory is. The kernels release the GIL and each call uses one thread.

What only ggml encodes (:data:`qexport.codecs.ggml.ONLY_GGML`) it decodes as well, or gguf-py where
xllamacpp is not installed, which is slower.

Left out: bfloat16 and other results, which are a ``torch.Tensor.to`` away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qexport.codecs import ggml
from qexport.codecs.ggml_types import ggml_type
from qexport.errors import UsageProblem

if TYPE_CHECKING:
    import numpy as np


def decode_rows(type_name: str, packed: np.ndarray, columns: int) -> np.ndarray:
    """Rows of numbers.

    Args:
        type_name: a name of :data:`~qexport.codecs.ggml_types.GGML_TYPES`.
        packed: uint8 ``(n, row_bytes)``, as encoders return it.
        columns: values of a row.

    Returns:
        float32 ``(n, columns)``, a new array.
    """
    import numpy as np

    kind = ggml_type(type_name)
    width = kind.row_bytes(columns)
    if packed.ndim != 2 or packed.dtype != np.uint8 or packed.shape[1] != width:
        raise UsageProblem(
            f"{columns} values of {kind.name} are uint8 rows of {width} bytes, "
            f"not {packed.dtype} {packed.shape}"
        )
    packed = np.ascontiguousarray(packed)
    if kind.name == "F32":
        return packed.view(np.float32).copy()
    if kind.name == "F16":
        return packed.view(np.float16).astype(np.float32)
    if kind.name == "BF16":
        return (packed.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    out = np.empty((len(packed), columns), np.float32)
    if kind.name not in ggml.ONLY_GGML:
        _kernel(kind.name)(packed.reshape(-1, kind.nbytes), out.reshape(-1, kind.block))
    elif ggml.is_available():
        ggml.dequantize_into(kind.name, packed, out)
    else:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        out[:] = dequantize(packed, GGMLQuantizationType[kind.name])
    return out


def _kernel(type_name: str) -> Callable[[np.ndarray, np.ndarray], None]:
    """The loop that decodes blocks of this type."""
    from qexport.codecs import decode_blocks, decode_super

    return {
        "Q8_0": decode_blocks.decode_q8_0,
        "Q4_0": decode_blocks.decode_q4,
        "Q4_1": decode_blocks.decode_q4,
        "Q5_0": decode_blocks.decode_q5,
        "Q5_1": decode_blocks.decode_q5,
        "IQ4_NL": decode_blocks.decode_iq4_nl,
        "MXFP4": decode_blocks.decode_mxfp4,
        "NVFP4": decode_blocks.decode_nvfp4,
        "Q2_K": decode_super.decode_q2_k,
        "Q3_K": decode_super.decode_q3_k,
        "Q4_K": decode_super.decode_q4_k,
        "Q5_K": decode_super.decode_q5_k,
        "Q6_K": decode_super.decode_q6_k,
        "IQ4_XS": decode_super.decode_iq4_xs,
    }[type_name]
