"""One MLX pass against mlx_lm convert: the same tensors, timed in one run.

    python benchmarks/qwen35_shape.py /somewhere/big
    python benchmarks/mlx_pass.py /somewhere/big --bits 6 [--rounds 2] [--compare] [--peer-python PYTHON]

Whole processes from start to end; ours writes the MTP head's folder as well, which the peer drops. mlx-lm
does not know text-only `qwen3_5_text`, so the peer reads links to the files beside a config that it knows.
`--importance` times ours with a matrix. Prints seconds, peak memory and the ratio, and with `--compare`
whether the tensors of the last round are the same to the byte.
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
from qexport.evidence.imatrix_file import read_imatrix
from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.onepass.execute import execute
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.mlx.plan import plan_mlx

model, out, mode, bits, threads, matrix = sys.argv[1:]
options = MlxOptions(
    mode=mode, bits=int(bits) if bits else None, importance=read_imatrix(Path(matrix)) if matrix else None
)
plans = plan_mlx(diagnose(LocalCheckpoint(Path(model))).repaired, options)
execute(plans, [Path(out), Path(out + "-MTP")][: len(plans)], threads=int(threads))
"""

PEER = """
import sys
from mlx_lm.convert import convert

model, out, mode, bits = sys.argv[1:]
convert(model, out, quantize=True, q_mode=mode, q_bits=int(bits) if bits else None)
"""


def qexport(args: argparse.Namespace, out: Path) -> tuple[float, float]:
    words = [str(args.model), str(out), args.mode, args.bits, str(args.threads), str(args.importance or "")]
    return timed([sys.executable, "-c", OURS, *words], PYTHONPATH=str(ROOT))


def peer(args: argparse.Namespace, out: Path) -> tuple[float, float]:
    source = out.with_name("source")
    if not source.exists():
        source.mkdir()
        for file in args.model.resolve().iterdir():
            (source / file.name).hardlink_to(file)
        config = json.loads((source / "config.json").read_text())
        if config["model_type"].startswith("qwen3_5"):
            config["model_type"] = config["model_type"].removesuffix("_text")
        (source / "config.json").unlink()
        (source / "config.json").write_text(json.dumps(config))
    return timed([args.peer_python, "-c", PEER, str(source), str(out), args.mode, args.bits])


def compare(one: Path, other: Path) -> str:
    """Whether two folders hold the same tensors."""
    import torch
    from safetensors.torch import load_file

    mine, theirs = (
        {name: t for file in sorted(folder.glob("model*.safetensors")) for name, t in load_file(file).items()}
        for folder in (one, other)
    )
    if mine.keys() != theirs.keys():
        return f"{len(mine.keys() ^ theirs.keys())} tensors are in one of them only"
    different = sum(
        a.dtype != theirs[name].dtype
        or not a.flatten().view(torch.uint8).equal(theirs[name].flatten().view(torch.uint8))
        for name, a in mine.items()
    )
    return f"{len(mine)} tensors, {different} of them different"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--mode", default="affine")
    parser.add_argument("--bits", default="", help="Of affine codes; mlx-lm's default is 4.")
    parser.add_argument("--importance", type=Path, help="An importance matrix for ours.")
    parser.add_argument("--peer-python", default=sys.executable, help="A python that has mlx-lm.")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compare", action="store_true", help="Compare the tensors of the last round.")
    parser.add_argument("--work", type=Path, help="Where the files go; on a disk with room.")
    args = parser.parse_args()
    results: dict[str, list[tuple[float, float]]] = {"qexport": [], "peer": []}
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        for _ in range(args.rounds):
            for measure in (qexport, peer):
                folder = Path(work) / measure.__name__
                for old in (folder, Path(f"{folder}-MTP")):
                    shutil.rmtree(old, ignore_errors=True)
                seconds, peak = measure(args, folder)
                results[measure.__name__].append((seconds, peak))
                print(f"{measure.__name__:>10}: {seconds:6.1f} s, {peak:6.0f} MiB", flush=True)
        if args.compare:
            print(compare(Path(work) / "qexport", Path(work) / "peer"))
    ours, theirs = (statistics.median(s for s, _ in results[name]) for name in ("qexport", "peer"))
    kind = f"{args.bits}-bit" if args.bits else args.mode
    print(f"MLX {kind}, {args.threads} threads: {theirs / ours:.2f} times faster")


if __name__ == "__main__":
    main()
