"""The ggml types that qexport writes: name, number, block size, bytes of one block.

A GGUF file stores every tensor in one of these types. Values along a row are grouped into blocks of
``block`` values and each block takes ``nbytes`` bytes: a Q8_0 block is a float16 scale and 32 signed bytes,
34 bytes. The numbers are part of the file format and never change:
https://github.com/ggml-org/llama.cpp/blob/master/ggml/include/ggml.h (enum ggml_type)

NVFP4 is a block type with a companion: the float32 scale of a whole matrix stands in a tensor of its own
(:mod:`qexport.codecs.nvfp4_blocks`).

Left out: ternary types, and what no reader supports any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qexport.errors import UsageProblem


@dataclass(frozen=True)
class GgmlType:
    """One row of the table."""

    name: str
    id: int
    block: int
    nbytes: int

    @property
    def is_quantized(self) -> bool:
        """Whether it is more than a float per value."""
        return self.block > 1

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.block

    def fits(self, columns: int) -> bool:
        """Whether rows of ``columns`` values are a whole number of blocks."""
        return columns > 0 and columns % self.block == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of ``columns`` values."""
        if not self.fits(columns):
            raise UsageProblem(f"{columns} values are no whole number of {self.name} blocks ({self.block})")
        return columns // self.block * self.nbytes


# A K-quant block is 256 values: float16 scales, packed 4/6-bit sub-scales, then the packed quants. The sizes
# spell that out in ggml-common.h: https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h
GGML_TYPES: Mapping[str, GgmlType] = {
    row.name: row
    for row in (
        GgmlType("F32", 0, 1, 4),
        GgmlType("F16", 1, 1, 2),
        GgmlType("BF16", 30, 1, 2),
        GgmlType("Q8_0", 8, 32, 34),
        GgmlType("Q4_0", 2, 32, 18),
        GgmlType("Q4_1", 3, 32, 20),
        GgmlType("Q5_0", 6, 32, 22),
        GgmlType("Q5_1", 7, 32, 24),
        GgmlType("Q2_K", 10, 256, 84),
        GgmlType("Q3_K", 11, 256, 110),
        GgmlType("Q4_K", 12, 256, 144),
        GgmlType("Q5_K", 13, 256, 176),
        GgmlType("Q6_K", 14, 256, 210),
        GgmlType("IQ4_NL", 20, 32, 18),
        GgmlType("IQ4_XS", 23, 256, 136),
        GgmlType("IQ3_S", 21, 256, 110),
        GgmlType("IQ3_XXS", 18, 256, 98),
        GgmlType("IQ2_S", 22, 256, 82),
        GgmlType("IQ2_XS", 17, 256, 74),
        GgmlType("IQ2_XXS", 16, 256, 66),
        GgmlType("IQ1_M", 29, 256, 56),
        GgmlType("IQ1_S", 19, 256, 50),
        GgmlType("MXFP4", 39, 32, 17),
        GgmlType("NVFP4", 40, 64, 36),
    )
}


def ggml_type(name: str) -> GgmlType:
    """The type called ``name``, upper or lower case. Raises UsageProblem listing the known names."""
    found = GGML_TYPES.get(name.upper())
    if found is None:
        raise UsageProblem(f"unknown tensor type {name!r}", hint=f"known types: {', '.join(GGML_TYPES)}")
    return found
