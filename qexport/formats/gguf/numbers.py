"""Where the floats of each GGML type lie in its blocks, and the blocks of a file one after another.

Offsets as in https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from qexport.artifacts.words import E4M3, E8M0, F16, FLOATS, Numbers, WordBlocks
from qexport.checkpoint.tensors import matrix_shape
from qexport.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from qexport.container.gguf_file import GgufInfo
    from qexport.container.gguf_read import GgufTensor


class _Iq1M(WordBlocks):
    """IQ1_M keeps its float16 in the upper four bits of four words."""

    def words(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        import numpy as np

        quarters = np.ascontiguousarray(rows[:, 48:56]).view("<u2")
        yield np.bitwise_or.reduce((quarters & 0xF000) >> np.array([12, 8, 4, 0], "<u2"), axis=1)


BLOCKS: Mapping[str, WordBlocks] = {
    **FLOATS,
    "Q4_0": WordBlocks(18, F16),
    "Q4_1": WordBlocks(20, F16, (0, 2)),
    "Q5_0": WordBlocks(22, F16),
    "Q5_1": WordBlocks(24, F16, (0, 2)),
    "Q8_0": WordBlocks(34, F16),
    "Q1_0": WordBlocks(18, F16),
    "Q2_K": WordBlocks(84, F16, (80, 82)),
    "Q3_K": WordBlocks(110, F16, (108,)),
    "Q4_K": WordBlocks(144, F16, (0, 2)),
    "Q5_K": WordBlocks(176, F16, (0, 2)),
    "Q6_K": WordBlocks(210, F16, (208,)),
    "IQ1_S": WordBlocks(50, F16),
    "IQ1_M": _Iq1M(56, F16),
    "IQ2_XXS": WordBlocks(66, F16),
    "IQ2_XS": WordBlocks(74, F16),
    "IQ2_S": WordBlocks(82, F16),
    "IQ3_XXS": WordBlocks(98, F16),
    "IQ3_S": WordBlocks(110, F16),
    "IQ4_NL": WordBlocks(18, F16),
    "IQ4_XS": WordBlocks(136, F16),
    "TQ1_0": WordBlocks(54, F16, (52,)),
    "TQ2_0": WordBlocks(66, F16, (64,)),
    "MXFP4": WordBlocks(17, E8M0),
    "NVFP4": WordBlocks(36, E4M3, (0, 1, 2, 3)),
}


def gguf_numbers(paths: Sequence[Path], info: GgufInfo) -> Iterator[Numbers]:
    """The numbers of a GGUF whose shards are ``paths``."""
    for name, entry in info.entries.items():
        blocks = BLOCKS.get(entry.type_name)
        rows = matrix_shape(entry.shape)[0]
        pieces = partial(_pieces, name, paths[entry.shard], entry, blocks.size if blocks else 1)
        yield Numbers(name, entry.type_name, rows, blocks, pieces)


def _pieces(name: str, path: Path, entry: GgufTensor, block: int, size: int) -> Iterator[np.ndarray]:
    import numpy as np

    step = max(1, size // block) * block
    try:
        with path.open("rb") as file:
            file.seek(entry.start)
            for at in range(entry.start, entry.stop, step):
                piece = file.read(min(step, entry.stop - at))
                if len(piece) < min(step, entry.stop - at):
                    raise InputError(f"{name} cannot be read: the file has become shorter")
                yield np.frombuffer(piece, np.uint8)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or 'input/output error'}") from None
