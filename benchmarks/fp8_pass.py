"""One FP8 pass against llm-compressor's model_free_ptq: the same tensors, timed in one run.

    python benchmarks/qwen35_shape.py /somewhere/big
    python benchmarks/fp8_pass.py /somewhere/big --peer-python PYTHON_WITH_llmcompressor [--rounds 2]

Both write FP8_BLOCK in the compressed-tensors layout, whole processes from start to end; `--layout native`
times ours in the official layout beside the same peer. Prints seconds, peak memory and the ratio, and with
`--compare` whether the tensors of the last round are the same to the byte.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from whole_process import timed

ROOT = Path(__file__).parent.parent

OURS = """
import sys
from pathlib import Path
from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.onepass.execute import execute
from qexport.formats.fp8.options import Fp8Options
from qexport.formats.fp8.plan import plan_fp8

model, out, layout, threads = sys.argv[1:]
repaired = diagnose(LocalCheckpoint(Path(model))).repaired
execute([plan_fp8(repaired, Fp8Options(layout=layout))], Path(out), threads=int(threads))
"""

PEER = """
import json, sys
from llmcompressor import model_free_ptq

model, out, ignore, workers = sys.argv[1:]
ignored = json.loads(ignore)
model_free_ptq(model, out, scheme="FP8_BLOCK", ignore=ignored, max_workers=int(workers), device="cpu")
"""


def qexport(args: argparse.Namespace, out: Path) -> tuple[float, float]:
    command = [sys.executable, "-c", OURS, str(args.model), str(out), args.layout, str(args.threads)]
    return timed(command, PYTHONPATH=str(ROOT))


def peer(args: argparse.Namespace, out: Path) -> tuple[float, float]:
    ignore = json.dumps(patterns(args.model))
    return timed([args.peer_python, "-c", PEER, str(args.model), str(out), ignore, str(args.workers)])


def patterns(model: Path) -> list[str]:
    """What neither of the two quantizes."""
    from qexport.checkpoint.local import LocalCheckpoint
    from qexport.doctor import diagnose
    from qexport.formats.fp8.options import Fp8Options
    from qexport.formats.fp8.plan import plan_fp8

    repaired = diagnose(LocalCheckpoint(model)).repaired
    plan = plan_fp8(repaired, Fp8Options(layout="compressed-tensors"))
    return list(plan.details["not_converted"])


def compare(one: Path, other: Path) -> str:
    """Whether two folders hold the same tensors."""
    import torch
    from safetensors import safe_open

    def tensors(folder: Path) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as handle:
                found |= dict.fromkeys(handle.keys(), file)
        return found

    def read(file: Path, name: str) -> torch.Tensor:
        with safe_open(file, "pt") as handle:
            return handle.get_tensor(name)

    mine, theirs = tensors(one), tensors(other)
    if mine.keys() != theirs.keys():
        return f"{len(mine.keys() ^ theirs.keys())} tensors are in one of them only"
    different = 0
    for name, file in mine.items():
        a, b = read(file, name), read(theirs[name], name)
        different += a.dtype != b.dtype or not a.view(torch.uint8).equal(b.view(torch.uint8))
    return f"{len(mine)} tensors, {different} of them different"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer-python", required=True, help="A python that has llmcompressor.")
    parser.add_argument("--layout", choices=["native", "compressed-tensors"], default="compressed-tensors")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, default=1, help="The peer's max_workers.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compare", action="store_true", help="Compare the tensors of the last round.")
    parser.add_argument("--work", type=Path, help="Where the files go; on a disk with room.")
    args = parser.parse_args()
    results: dict[str, list[tuple[float, float]]] = {"qexport": [], "peer": []}
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        for _ in range(args.rounds):
            for measure in (qexport, peer):
                folder = Path(work) / measure.__name__
                shutil.rmtree(folder, ignore_errors=True)
                seconds, peak = measure(args, folder)
                results[measure.__name__].append((seconds, peak))
                print(f"{measure.__name__:>10}: {seconds:6.1f} s, {peak:6.0f} MiB", flush=True)
        if args.compare:
            print(compare(Path(work) / "qexport", Path(work) / "peer"))
    ours, theirs = (statistics.median(s for s, _ in results[name]) for name in ("qexport", "peer"))
    print(f"FP8_BLOCK, {args.layout}, {args.threads} threads: {theirs / ours:.2f} times faster")


if __name__ == "__main__":
    main()
