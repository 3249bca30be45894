"""One pass against llm-compressor: the same NVFP4A16 folder from the same checkpoint, timed in one run.

    python benchmarks/qwen35_shape.py /somewhere/big
    python benchmarks/nvfp4_pass.py /somewhere/big --llmc-python PYTHON_WITH_llmcompressor [--rounds 2]

Both quantize every linear layer of the language model, or with --scope mlp its MLPs; ours shares the global
scales of everything that runtimes fuse, model_free_ptq those of q, k, v and the dense MLP. Prints seconds,
those of processors (which a busy machine changes less), peak memory and ratios. Imports are part of both.
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

from whole_process import measured

ROOT = Path(__file__).parent.parent
LEFT = [
    *("lm_head", "re:.*embed_tokens$", r"re:.*linear_attn\.in_proj_a$", r"re:.*linear_attn\.in_proj_b$"),
    *(r"re:.*linear_attn\.conv1d$", r"re:.*mlp\.gate$", r"re:.*mlp\.shared_expert_gate$"),
    *("re:.*visual.*", "re:.*mtp.*"),
]
ATTENTION = ["re:.*self_attn.*", "re:.*linear_attn.*"]
PEER = (
    "import json, sys; from llmcompressor import model_free_ptq;"
    "model_free_ptq(sys.argv[1], sys.argv[2], scheme='NVFP4A16', ignore=json.loads(sys.argv[3]),"
    " max_workers=int(sys.argv[4]), device='cpu')"
)


def model_free_ptq(args: argparse.Namespace, out: Path) -> tuple[float, float, float]:
    left = json.dumps([*LEFT, *(ATTENTION if args.scope == "mlp" else [])])
    command = [args.llmc_python, "-c", PEER, str(args.model), str(out), left, str(args.workers)]
    return measured(command, OMP_NUM_THREADS=str(args.threads), PYTHONPATH="")


def qexport(args: argparse.Namespace, out: Path) -> tuple[float, float, float]:
    command = [
        sys.executable,
        "-m",
        "qexport",
        "nvfp4",
        str(args.model),
        "-o",
        str(out / "ours"),
        "--no-verify",
    ]
    command += ["--layout", args.layout, "--scope", args.scope, "--scale-search", args.scale_search]
    return measured([*command, "--threads", str(args.threads)], PYTHONPATH=str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--llmc-python", required=True)
    parser.add_argument("--scope", choices=["all-linear", "mlp"], default="all-linear")
    parser.add_argument("--layout", default="compressed-tensors")
    parser.add_argument("--scale-search", default="max")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, default=1, help="Shards that model_free_ptq does at a time.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, help="Where the files go; on a disk with room.")
    args = parser.parse_args()
    ours: list[tuple[float, float, float]] = []
    theirs: list[tuple[float, float, float]] = []
    for _ in range(args.rounds):
        for measure, results in ((qexport, ours), (model_free_ptq, theirs)):
            folder = Path(tempfile.mkdtemp(dir=args.work))
            try:
                results.append(measure(args, folder))
            finally:
                shutil.rmtree(folder)
            seconds, busy, peak = results[-1]
            name = f"{measure.__name__:>14}"
            print(f"{name}: {seconds:6.1f} s, {busy:6.1f} s of processors, {peak:6.0f} MiB", flush=True)
    by_clock, by_work = (
        statistics.median(run[place] for run in theirs) / statistics.median(run[place] for run in ours)
        for place in (0, 1)
    )
    print(f"NVFP4 {args.scope}, {args.threads} threads: {by_clock:.2f} times faster, {by_work:.2f} in work")


if __name__ == "__main__":
    main()
