"""Every format and the GGUF ladder from one read: seconds, peak memory, how often each row was loaded.

    python benchmarks/qwen35_shape.py /somewhere/big
    python benchmarks/all_formats_pass.py /somewhere/big [--threads 2] [--rounds 2]

Writes Q4_K_M, Q5_K_M, Q6_K and Q8_0, MLX 6-bit with its drafter, FP8 in both layouts and NVFP4 in both, in
one process; then each target alone, for comparison. A row is loaded when it is read and was not in memory, or
no longer: pages not given back since count once. No peer does this in one pass; what the peers of the
single formats need is in the other benchmarks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

CHILD = """
import json, sys, threading
from pathlib import Path
import numpy as np
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.tensors import matrix_shape
from qexport.doctor import diagnose
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.gguf.options import GgufOptions
from qexport.run import steps
from qexport.run.target import Target, plan

model, out, only, threads = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
targets = {
    "GGUF ladder": Target(GgufOptions(("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")), out / "gguf", verify=None),
    "MLX 6-bit": Target(MlxOptions(bits=6), out / "mlx", verify=None),
    "FP8": Target(Fp8Options(), out / "fp8", verify=None),
    "FP8_BLOCK": Target(Fp8Options(layout="compressed-tensors"), out / "fp8-ct", verify=None),
    "NVFP4": Target(Nvfp4Options(), out / "nvfp4", verify=None),
    "NVFP4A16": Target(Nvfp4Options(layout="compressed-tensors"), out / "nvfp4-ct", verify=None),
}
source = LocalCheckpoint(model)
loads = {n: np.zeros(matrix_shape(t.shape)[0], np.int16) for n, t in source.tensors.items()}
held = {n: np.zeros(len(rows), np.int16) for n, rows in loads.items()}
lock, release = threading.Lock(), LocalCheckpoint.release

def read(name, start, stop):
    with lock:
        loads[name][start:stop] += 1 - held[name][start:stop]
        held[name][start:stop] = 1

def given_back(mine, name, start, stop):
    with lock:
        held[name][start:stop] = 0
    release(mine, name, start, stop)

source.on_read, LocalCheckpoint.release = read, given_back
diagnosis = diagnose(source)
items = plan([t for name, t in targets.items() if only in ("all", name)], diagnosis)
steps.write(items, diagnosis, home=out, threads=threads)
needed = {p.name for item in items for t in item.plan.tensors for p in t.source.pieces if p.name in loads}
print(json.dumps({
    "bytes": sum(item.plan.size for item in items),
    "least": min(int(loads[name].min()) for name in needed),
    "most": max(int(rows.max()) for rows in loads.values()),
    "tensors": len(needed),
}))
"""
TARGETS = ("GGUF ladder", "MLX 6-bit", "FP8", "FP8_BLOCK", "NVFP4", "NVFP4A16")


def run(args: argparse.Namespace, only: str, out: Path) -> tuple[float, float, dict[str, int]]:
    """Seconds, peak resident MiB, and what the process counted."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", CHILD, str(args.model), str(out), only, str(args.threads)]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{only}: failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024, json.loads(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, help="Where the files go; on a disk with room.")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        for _ in range(args.rounds):
            for only in ("all", *TARGETS):
                took, peak, counted = run(args, only, Path(work) / "out")
                seconds.setdefault(only, []).append(took)
                times = f"{counted['least']} to {counted['most']} times"
                print(
                    f"{only:>12}: {took:6.1f} s, {peak:6.0f} MiB, {counted['bytes'] / 1e9:.2f} GB written, "
                    f"rows of {counted['tensors']} tensors loaded {times}",
                    flush=True,
                )
    together = statistics.median(seconds["all"])
    alone = sum(statistics.median(seconds[only]) for only in TARGETS)
    print(f"together {together:.1f} s, one after the other {alone:.1f} s, {args.threads} threads")


if __name__ == "__main__":
    main()
