"""What it costs to hold every stored number against the source's, and how far rounding puts a run of them.

    python benchmarks/source_weights.py [--rows 1024] [--columns 5120] [--rounds 3]

The check ``weights`` of a verification, on one thread, on matrices of a 27B's widths that are made here:
processor seconds for each gigabyte of the source in bfloat16, reading left out, and what a source of 54 GB
comes to. Numbers are bell-shaped, or rows and columns of different sizes with outliers; importance is
log-normal. "whole" is the error of the matrix, "run" that of the worst run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qexport.artifacts.rows import DecodedCheckpoint
from qexport.codecs.contract import (
    Blocks,
    Float,
    Fp8Rows,
    Known,
    Matrices,
    MlxAffine,
    Nvfp4,
    StoredType,
)
from qexport.codecs.decoded import decode
from qexport.codecs.engines import encode_rows
from qexport.families.roles import Block, Role
from qexport.families.view import ModelTensor
from qexport.verification.weight_pairs import Compared, WeightPair

GGML = "Q8_0 Q6_K Q5_K Q4_K Q4_0 IQ4_XS MXFP4 Q3_K IQ3_S IQ3_XXS Q2_K IQ2_S IQ2_XXS IQ1_S"
TYPES: Sequence[StoredType] = (
    *(Float("BF16"), *(Blocks(name) for name in GGML.split()), Nvfp4(), Fp8Rows()),
    *(MlxAffine(bits, 64) for bits in (4, 3, 2)),
)
NEED_IMPORTANCE = ("IQ1_S", "IQ2_XXS")
SOURCE_GB = 54


@dataclass
class Made:
    """A matrix as it is stored, or the source's own where there are no streams."""

    source: torch.Tensor
    stored: StoredType | None = None
    streams: Sequence[np.ndarray] = ()
    largest: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    @property
    def dtype(self) -> str:
        return "BF16" if self.stored is None else "F32"

    def read(self, start: int, stop: int) -> torch.Tensor:
        if self.stored is None:
            return self.source[start:stop]
        rows = len(self.source)
        parts = [each[start * len(each) // rows : -(-stop * len(each) // rows)] for each in self.streams]
        return decode(self.stored, parts, self.source.shape[1], Known(largest=self.largest))


def compared(made: Made, bits: int) -> tuple[Compared, float]:
    """What the check says, and its processor seconds."""
    both = [DecodedCheckpoint("made", {"w": each}).logical()["w"] for each in (made, Made(made.source))]
    begin = time.process_time()
    tensor = ModelTensor(both[0], Role.FFN_UP, Block.TRUNK, 0)
    found = WeightPair(tensor, both[1], (0, len(made.source)), bits).compared()
    return found, time.process_time() - begin


def numbers(rows: int, columns: int, *, outliers: bool) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    values = 0.02 * torch.randn(rows, columns, generator=random)
    if outliers:
        values *= torch.exp(0.7 * torch.randn(columns, generator=random))
        values *= torch.exp(torch.randn(rows, 1, generator=random))
        values *= torch.where(torch.rand(rows, columns, generator=random) < 1e-3, 20.0, 1.0)
    return values.bfloat16()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(2)
    weighed = torch.exp(1.5 * torch.randn(1, args.columns, generator=random)).numpy().astype(np.float32)
    for outliers in (False, True):
        source = numbers(args.rows, args.columns, outliers=outliers)
        largest = float(source.abs().max())
        for stored in TYPES:
            for importance in (None, weighed):
                if importance is None and stored.name in NEED_IMPORTANCE:
                    continue
                if importance is not None and not getattr(stored, "uses_importance", False):
                    continue
                known = Matrices(importance=importance, largest=np.array([largest]))
                (streams,) = encode_rows(stored, source, known=known)
                found = [compared(Made(source, stored, streams, largest), 4) for _ in range(args.rounds)]
                result = found[0][0]
                assert result.worst is not None
                cost = min(seconds for _, seconds in found) / (source.numel() * 2 / 1e9)
                print(
                    f"{stored.name:12s} {'outliers' if outliers else 'bell':9s}"
                    f"{'importance' if importance is not None else '':11s}"
                    f"whole {result.error:.3f}  run {result.worst.error:.3f}  "
                    f"{cost:5.1f} s/GB, {cost * SOURCE_GB:4.0f} s of {SOURCE_GB} GB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
