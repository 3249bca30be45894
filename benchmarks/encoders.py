"""Our encoders against ggml's reference encoders: million weights per second, in one process, in turns.

    python benchmarks/encoders.py [--types Q4_K Q5_K] [--rounds 5] [--threads 1] [--rows 4096]

Rows are bfloat16, bell-shaped, as checkpoints have them; importance is squares of such numbers. Ours reads
them as they are. ggml reads float32 only: "ggml" is its time on rows that are float32 already, "ggml+widen"
includes widening them a megabyte at a time, which is what a bfloat16 checkpoint takes. A number is the best
of the rounds, a ratio that of ours to "ggml"; "median" is the ratio of medians. With more threads every one
encodes its share of the rows, for both. Bytes are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from qexport.codecs import ggml
from qexport.codecs.contract import Blocks, Matrices, chunk_rows
from qexport.codecs.engines import NUMBA, encode_rows
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.codecs.warmup import prepare_encoders

Work = Callable[[int, int], Any]


def ours(name: str, rows: torch.Tensor, weights: np.ndarray | None) -> Work:
    known = Matrices(importance=None if weights is None else weights[None])
    return lambda start, stop: encode_rows(Blocks(name), rows[start:stop], start, known, [NUMBA])


def plain_ggml(name: str, wide: np.ndarray, weights: np.ndarray | None) -> Work:
    return lambda start, stop: ggml.quantize_rows(name, wide[start:stop], weights)


def widening_ggml(name: str, rows: torch.Tensor, weights: np.ndarray | None) -> Work:
    step = chunk_rows(rows)

    def work(start: int, stop: int) -> None:
        for first in range(start, stop, step):
            part = rows[first : min(stop, first + step)].to(torch.float32).numpy()
            ggml.quantize_rows(name, part, weights)

    return work


def seconds(work: Work, rows: int, pool: ThreadPoolExecutor | None, threads: int) -> float:
    edges = [rows * i // threads for i in range(threads + 1)]
    begin = time.perf_counter()
    if pool is None:
        work(0, rows)
    else:
        list(pool.map(work, edges[:-1], edges[1:]))
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", default=[k for k, v in GGML_TYPES.items() if v.is_quantized])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    types = [name for name in args.types if NUMBA.encoder(Blocks(name)) is not None]

    rng = np.random.default_rng(0)
    shape = args.rows, args.columns
    rows = torch.from_numpy(rng.standard_normal(shape, np.float32) * np.float32(0.02)).to(torch.bfloat16)
    wide = rows.to(torch.float32).numpy()
    importance = np.square(rng.standard_normal(args.columns, np.float32))
    kinds = [(Blocks(name), weighted) for name in types for weighted in (False, True)]
    for one in prepare_encoders((*kind, torch.bfloat16, args.columns) for kind in kinds):
        print(f"{one.type_name}: {'compiled' if one.compiled else 'loaded'} in {one.seconds:.1f} s")
    print(f"\n{args.rows} x {args.columns} bfloat16, threads: {args.threads}, best of {args.rounds}, Mw/s")
    print(
        f"{'type':6} {'importance':10} {'ours':>8} {'ggml':>8} {'ggml+widen':>10} {'ratio':>6} {'median':>6}"
    )

    pool = ThreadPoolExecutor(args.threads) if args.threads > 1 else None
    for name in types:
        for weights in (None, importance) if Blocks(name).uses_importance else (None,):
            mine = ours(name, rows, weights)
            ((packed,),) = mine(0, 64)
            if not np.array_equal(packed, ggml.quantize_rows(name, wide[:64], weights)):
                raise SystemExit(f"{name}: bytes differ from ggml's")
            works = mine, plain_ggml(name, wide, weights), widening_ggml(name, rows, weights)
            times: list[list[float]] = [[], [], []]
            for _ in range(args.rounds):
                for work, spent in zip(works, times, strict=True):
                    spent.append(seconds(work, args.rows, pool, args.threads))
            speeds = [rows.numel() / min(spent) / 1e6 for spent in times]
            median = statistics.median(times[1]) / statistics.median(times[0])
            print(
                f"{name:6} {'yes' if weights is not None else 'no':10} {speeds[0]:8.1f} {speeds[1]:8.1f} "
                f"{speeds[2]:10.1f} {speeds[0] / speeds[1]:6.1f} {median:6.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
