"""What error feedback adds: seconds of a processor for a million weights, beside plain encoding.

    python benchmarks/feedback.py [--types Q4_K Q6_K mlx4 nvfp4] [--columns 1024 4096] [--rows 512]

One thread; rows are bell-shaped bfloat16, inputs go together. "plain" is the same type with importance;
"feedback" rounds once, "again" is what is written: all columns rounded once more. "matrix" is what is done
once a matrix, whatever its rows: the product of the inputs of so many tokens, and its factor. Seconds of the
processor, so that others on the machine count little; the best of the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from qexport.codecs.contract import Blocks, Known, MlxAffine, Nvfp4, StoredType
from qexport.codecs.engines import engine_of
from qexport.codecs.feedback import prepare, shrunk, unit_of

TYPES: dict[str, StoredType] = {
    **{name: Blocks(name) for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")},
    "mlx4": MlxAffine(4, 64),
    "mlx6": MlxAffine(6, 64),
    "nvfp4": Nvfp4(scales="mse"),
}


def best(work: Callable[[], Any], rounds: int) -> float:
    found = []
    for _ in range(rounds + 1):  # the first compiles
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["Q4_K", "Q6_K", "mlx4", "nvfp4"])
    parser.add_argument("--columns", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = torch.Generator().manual_seed(1)
    print("seconds of one processor for a million weights")
    for columns in args.columns:
        mixed = torch.randn(columns // 4, columns, generator=made) / columns**0.5
        inputs = torch.randn(args.tokens, columns // 4, generator=made) @ mixed
        inputs += torch.randn(args.tokens, columns, generator=made) / 4
        rows = (torch.randn(args.rows, columns, generator=made) * 0.02).bfloat16()
        million = rows.numel() / 1e6
        multiplied = best(partial(torch.mm, inputs.T, inputs), 1)
        product = shrunk(inputs.T @ inputs / args.tokens, args.tokens)
        importance = np.ascontiguousarray(torch.diagonal(product).numpy())
        for name in args.types:
            stored = TYPES[name]
            encode, unit = engine_of(stored)[1], unit_of(stored)
            assert unit is not None
            factored = best(partial(prepare, product, unit), 1)
            times = []
            for feedback in (None, prepare(product, unit, descend=False), prepare(product, unit)):
                known = Known(importance, 0.1, True, feedback)
                times.append(best(partial(encode, stored, rows, known), args.rounds) / million)
            print(
                f"{columns:6} columns  {name:6} plain {times[0]:.4f}  feedback {times[1]:.4f}  "
                f"again {times[2]:.4f} ({times[2] / times[0]:.1f} times plain); matrix: "
                f"{multiplied:.2f} s for {args.tokens} tokens, {factored:.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
