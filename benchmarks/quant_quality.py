"""KL divergence to bf16 of quantized files, with and without importance, in one engine (llama-perplexity).

    python benchmarks/quant_quality.py MODEL HELD_OUT_TEXT --llama-bin BIN [--types Q4_K_M]
        [--corpus TEXT ...] [--chunks 40]

Variants: no importance; qexport's own corpus; for each --corpus, collected by qexport and collected by
llama-imatrix from the BF16 file. HELD_OUT_TEXT must be in none of them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--llama-bin", type=Path, required=True)
    parser.add_argument("--types", nargs="+", default=["Q4_K_M"])
    parser.add_argument("--corpus", type=Path, nargs="*", default=[])
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--work", type=Path, help="Where files go; on a disk with room.")
    args = parser.parse_args()
    threads = str(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        folder = Path(name)

        def run(*command: object) -> str:
            done = subprocess.run(
                [str(word) for word in command],
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            if done.returncode:
                raise SystemExit(f"failed: {command}\n{done.stderr[-2000:]}")
            return done.stdout + done.stderr

        def export(kind: str, out: str, *importance: object) -> Path:
            target = folder / out
            qexport = (sys.executable, "-m", "qexport", "gguf", args.model, "-q", kind, "-o", target)
            run(*qexport, "--no-verify", "--file-name", "{name}-{type}", *importance)
            (file,) = target.glob(f"*-{kind}.gguf")
            return file

        bf16, base = export("BF16", "bf16"), folder / "base.kld"
        perplexity = (args.llama_bin / "llama-perplexity", "-t", threads, "-c", args.chunk)
        save = ("-m", bf16, "-f", args.text, "--chunks", args.chunks, "--kl-divergence-base", base)
        run(*perplexity, *save)
        variants: dict[str, tuple[object, ...]] = {"none": (), "built-in corpus": ("--imatrix",)}
        for corpus in args.corpus:
            theirs = folder / f"{corpus.stem}.imatrix.gguf"
            imatrix = (
                args.llama_bin / "llama-imatrix",
                "-m",
                bf16,
                "-f",
                corpus,
                "-o",
                theirs,
                "-t",
                threads,
            )
            run(*imatrix, "-c", args.chunk, "--no-ppl")
            variants[corpus.name] = ("--imatrix", corpus)
            variants[f"{corpus.name} by llama-imatrix"] = ("--imatrix", theirs)
        for kind in args.types:
            for number, (label, importance) in enumerate(variants.items()):
                file = export(kind, f"{kind}-{number}", *importance)
                said = run(*perplexity, "-m", file, "--kl-divergence-base", base, "--kl-divergence")
                figures = [
                    found[1]
                    for pattern in (
                        r"Mean\s+KLD:\s+([\d.]+ ±\s+[\d.]+)",
                        r"99.0%\s+KLD:\s+([\d.]+)",
                        r"Same top p:\s+([\d.]+)",
                    )
                    if (found := re.search(pattern, said))
                ]
                mean, tail, top = figures
                print(f"{kind:>7} {label:<32} KLD {mean}, 99 % {tail}, same top {top} %", flush=True)


if __name__ == "__main__":
    main()
