"""One pass against the llama.cpp toolchain: the same files from the same checkpoint, timed in one run.

    python benchmarks/qwen35_shape.py /somewhere/big
    python benchmarks/gguf_pass.py /somewhere/big --types BF16 Q8_0 \
        --llama-cpp LLAMA_CPP_TREE --llama-bin FOLDER_WITH_llama-quantize [--rounds 2]
    python benchmarks/gguf_pass.py /somewhere/big --types Q4_K_M Q5_K_M Q6_K Q8_0 --imatrix FILE ...

The toolchain converts once to BF16 and runs llama-quantize for each further type, as publishers do. Its
converter knows pre-tokenizers by a hash of their output and refuses a padded one, so it is run through
tests/oracle/toolchain.py, which gives it the name. Prints seconds, peak memory and the ratio.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from whole_process import timed

ROOT = Path(__file__).parent.parent


def toolchain(args: argparse.Namespace, out: Path) -> tuple[float, float]:
    """Convert, then quantize from the BF16 file."""
    sys.path.insert(0, str(ROOT / "tests"))
    os.environ["QEXPORT_LLAMA_CPP"], os.environ["QEXPORT_LLAMA_BIN"] = args.llama_cpp, args.llama_bin
    from oracle import toolchain as peer

    bf16 = out / "peer-BF16.gguf"
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from oracle import toolchain;"
        "toolchain.convert(Path(sys.argv[2]), Path(sys.argv[3]), 'bf16', pre='qwen35')"
    )
    seconds, peak = timed([sys.executable, "-c", script, str(ROOT / "tests"), str(args.model), str(bf16)])
    for kind in args.types:
        if kind != "BF16":
            target = out / f"peer-{kind}.gguf"
            matrix = ["--imatrix", str(args.imatrix)] if args.imatrix else []
            quantize = [str(peer.tool("llama-quantize")), *matrix]
            more, memory = timed([*quantize, str(bf16), str(target), kind, str(args.threads)])
            seconds, peak = seconds + more, max(peak, memory)
    return seconds, peak


def qexport(args: argparse.Namespace, out: Path) -> tuple[float, float]:
    """All types from one read."""
    types = [word for kind in args.types for word in ("-q", kind)]
    command = [
        sys.executable,
        "-m",
        "qexport",
        "gguf",
        str(args.model),
        *types,
        "-o",
        str(out),
        "--no-verify",
    ]
    if args.imatrix:
        command += ["--imatrix", str(args.imatrix)]
    return timed([*command, "--threads", str(args.threads)], PYTHONPATH=str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--types", nargs="+", default=["BF16", "Q8_0"])
    parser.add_argument("--imatrix", type=Path, help="An importance matrix for both.")
    parser.add_argument("--llama-cpp", required=True)
    parser.add_argument("--llama-bin", required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, help="Where the files go; on a disk with room.")
    args = parser.parse_args()
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(args.rounds):
        for measure, results in ((qexport, ours), (toolchain, theirs)):
            folder = Path(tempfile.mkdtemp(dir=args.work))
            try:
                results.append(measure(args, folder))
            finally:
                shutil.rmtree(folder)
            print(f"{measure.__name__:>10}: {results[-1][0]:6.1f} s, {results[-1][1]:6.0f} MiB", flush=True)
    ratio = statistics.median(s for s, _ in theirs) / statistics.median(s for s, _ in ours)
    print(f"{'+'.join(args.types)}, {args.threads} threads: {ratio:.2f} times faster")


if __name__ == "__main__":
    main()
