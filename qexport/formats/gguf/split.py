"""How a GGUF is divided into files: at tensors' borders, in order, as llama.cpp's tools do it.

``--split-max-size`` counts bytes of tensor data, as the converter's option of that name does. Where nothing
is said, a file is divided that is larger than publishers put onto the Hub in one piece, so that no part is
larger than :data:`LARGEST` with its header; a tensor alone may be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.checkpoint.tensors import matrix_shape
from qexport.codecs.ggml_types import ggml_type
from qexport.container.gguf_write import ALIGNMENT, TensorInfo, header_bytes, padded, shard_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qexport.container.gguf_write import KV
    from qexport.formats.gguf.file_types import FileType
    from qexport.formats.gguf.mixture_terms import Choice
    from qexport.formats.gguf.scaled import Untyped


LARGEST = 50 * 10**9
"""Bytes. The Hub once took no larger file; now it advises against more than 200 GB and refuses 500
(https://huggingface.co/docs/hub/storage-limits). Downloads of large files still break, and are not cached."""
_SURELY = 10**9  # bytes that no header has
_FEW = 2  # any number of parts above one: each header has the same keys


def data_bytes(output: Untyped, choices: Mapping[str, Choice]) -> int:
    """Bytes of a tensor's data."""
    rows, columns = matrix_shape(output.shape)
    return rows * ggml_type(choices[output.name].type).row_bytes(columns)


def parts_of(
    file: FileType,
    outputs: Sequence[Untyped],
    choices: Mapping[str, Choice],
    metadata: Mapping[str, KV],
    asked: int | None,
) -> list[list[Untyped]]:
    """What goes into each file.

    Args:
        metadata: of the whole.
        asked: bytes of tensor data in a file; 0: all of it. ``None``: so that none exceeds :data:`LARGEST`.
    """
    limit = _limit(file, outputs, choices, metadata) if asked is None else asked
    parts = cuts([data_bytes(output, choices) for output in outputs], limit)
    return [[outputs[at] for at in part] for part in parts]


def cuts(sizes: Sequence[int], limit: int) -> list[range]:
    """Places in order, as many together as ``limit`` allows, one at least; all of them where it is 0.

    >>> cuts([3, 4, 9, 1], 8), cuts([3, 4], 0)
    ([range(0, 2), range(2, 3), range(3, 4)], [range(0, 2)])
    """
    parts: list[range] = []
    first = size = 0
    for at, nbytes in enumerate(sizes):
        if limit and at > first and size + nbytes > limit:
            parts.append(range(first, at))
            first, size = at, 0
        size += nbytes
    return [*parts, range(first, len(sizes))]


def _limit(
    file: FileType,
    outputs: Sequence[Untyped],
    choices: Mapping[str, Choice],
    metadata: Mapping[str, KV],
) -> int:
    """Bytes of tensor data with which no file exceeds :data:`LARGEST`; 0 where the whole does not."""
    infos, size = infos_of(file, outputs, choices)
    if size + _SURELY <= LARGEST:
        return 0
    # No part's header is larger than that of a part with all keys and all tensors.
    header = len(header_bytes(shard_metadata(metadata, 0, _FEW, len(outputs)), infos))
    return 0 if header + size <= LARGEST else LARGEST - header - ALIGNMENT * len(outputs)


def infos_of(
    file: FileType, members: Sequence[Untyped], choices: Mapping[str, Choice]
) -> tuple[list[TensorInfo], int]:
    """Tensor records with offsets from the start of the data, and the size of the data."""
    infos: list[TensorInfo] = []
    at = 0
    for output in members:
        kind = ggml_type(choices[output.name].type)
        infos.append(TensorInfo(output.name, _stored_shape(file, output.shape), kind.id, at))
        at = padded(at + data_bytes(output, choices))
    return infos, at


def _stored_shape(file: FileType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The converter keeps outer dimensions of 1 (``[1, n]``); llama-quantize writes a vector."""
    if not file.is_quantized:
        return shape
    first = next((i for i, size in enumerate(shape[:-1]) if size > 1), len(shape) - 1)
    return shape[first:]
