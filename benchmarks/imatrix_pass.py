"""The layer-streamed pass against llama-imatrix: the same text, the same chunks, one run.

    python benchmarks/imatrix_pass.py MODEL TEXT --llama-bin FOLDER_WITH_llama-imatrix [--chunks 16]
        [--chunk 512] [--rounds 2] [--precision auto]
    python benchmarks/imatrix_pass.py MODEL TEXT --sensitivity [--chunks 16] [...]

llama-imatrix reads a BF16 GGUF that qexport writes first (not counted). Both are timed as whole processes, in
seconds and in seconds of processors, which say more where others use the machine (with --threads 1).
Prints tokens per second, peak memory, and how far the two matrices are apart: the worst correlation and the
worst mean relative difference of mean squares over all tensors, and what only one of the two has.

The second form times the pass without and with sensitivities of 4096 tokens, in seconds of processors, and
says what these add to a pass over the default 131072 tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf_pass import ROOT
from whole_process import measured, timed

from qexport.evidence.imatrix_file import read_imatrix

_DEFAULT_TOKENS = 131072


def compare(ours: Path, theirs: Path) -> None:
    """Print the distance of two matrices."""
    mine, peers = read_imatrix(ours).entries, read_imatrix(theirs).entries
    rows = []
    for name in sorted(set(mine) & set(peers)):
        a, b = mine[name].ravel().astype(np.float64), peers[name].ravel().astype(np.float64)
        relative = float((np.abs(a - b) / np.maximum(np.abs(b), 1e-30)).mean())
        rows.append((name, float(np.corrcoef(a, b)[0, 1]), relative))
    low, high = min(rows, key=lambda row: row[1]), max(rows, key=lambda row: row[2])
    print(f"{len(rows)} tensors in both; lowest correlation {low[1]:.7f} ({low[0]})")
    print(f"  mean relative difference at most {high[2]:.2e} ({high[0]}),", end=" ")
    print(f"median {statistics.median(row[2] for row in rows):.2e}")
    print(f"  only ours: {len(set(mine) - set(peers))}, only theirs: {len(set(peers) - set(mine))}")


def with_sensitivity(command: list[str], tokens: int, rounds: int, env: dict[str, str]) -> None:
    """Print what sensitivities cost."""
    busy: dict[str, list[float]] = {"plain": [], "sensitivity": []}
    for _ in range(rounds):
        for label, more in (("plain", []), ("sensitivity", ["--sensitivity"])):
            taken, processors, peak = measured([*command, *more], **env)
            busy[label].append(processors)
            print(
                f"{label:>12}: {taken:6.1f} s, {processors:6.1f} s of processors, {peak:6.0f} MiB", flush=True
            )
    plain, both = (statistics.median(busy[label]) for label in busy)
    whole = plain * _DEFAULT_TOKENS / tokens
    print(f"{tokens} tokens: sensitivities of 4096 add {both - plain:.1f} s of processors to {plain:.1f} s,")
    print(f"which is {100 * (both - plain) / whole:.1f} % of a pass over {_DEFAULT_TOKENS}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--llama-bin", type=Path)
    mode.add_argument("--sensitivity", action="store_true")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, help="Where files go; on a disk with room.")
    args = parser.parse_args()
    tokens = args.chunks * args.chunk
    qexport = [sys.executable, "-m", "qexport"]
    env = {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        folder = Path(name)
        ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
        limits = ["--calib-tokens", str(tokens), "--calib-chunk", str(args.chunk)]
        mine = [*qexport, "imatrix", str(args.model), "--corpus", str(args.text), "-o", str(ours), *limits]
        mine += ["--threads", str(args.threads), "--precision", args.precision, "--overwrite"]
        if args.sensitivity:
            with_sensitivity(mine, tokens, args.rounds, env)
            return
        timed([*qexport, "gguf", str(args.model), "-q", "BF16", "-o", name, "--no-verify"], **env)
        (bf16,) = folder.glob("*.gguf")
        peer = [str(args.llama_bin / "llama-imatrix"), "-m", str(bf16), "-f", str(args.text), "--no-ppl"]
        peer += [
            "-c",
            str(args.chunk),
            "--chunks",
            str(args.chunks),
            "-t",
            str(args.threads),
            "-o",
            str(theirs),
        ]
        seconds: dict[str, list[tuple[float, float]]] = {"qexport": [], "llama-imatrix": []}
        for _ in range(args.rounds):
            for label, command in (("qexport", mine), ("llama-imatrix", peer)):
                taken, processors, peak = measured(command, **env)
                seconds[label].append((taken, processors))
                print(
                    f"{label:>14}: {taken:6.1f} s, {tokens / taken:7.0f} tokens/s, "
                    f"{processors:6.1f} s of processors, {peak:6.0f} MiB",
                    flush=True,
                )
        ours_took, theirs_took = (
            [statistics.median(each) for each in zip(*rounds, strict=True)] for rounds in seconds.values()
        )
        wall, busy = (b / a for a, b in zip(ours_took, theirs_took, strict=True))
        print(f"{tokens} tokens, {args.threads} threads: {wall:.2f} times as fast as llama-imatrix,")
        print(f"  by seconds of processors {busy:.2f} times")
        compare(ours, theirs)


if __name__ == "__main__":
    main()
