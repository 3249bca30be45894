"""The KL divergence that qexport reports for GGUF files against the one from llama.cpp's own logits.

    python benchmarks/divergence.py MODEL HELD_OUT_TEXT --llama-bin BIN [--types Q8_0 Q4_K_M] [--chunks 16]

BIN holds llama-perplexity and llama-quantize (or QEXPORT_LLAMA_BIN names it). Both count the second half of
each chunk, against the model in float32. Three numbers for each type:

- qexport: weights decoded, everything in float32, layer by layer (qexport/verification/divergence.py);
- llama.cpp, decoded: the file's weights decoded to F32 by llama-quantize: the same question to another;
- llama.cpp: the file as users run it, whose activations are rounded to 8 bits for each product.

The first two differ by what engines do in another order, and by llama-perplexity's storing of the base's
log-probabilities in 16 bits: the F32 file against itself says how much that is. The third differs from the
second by llama.cpp's arithmetic, which is no property of the weights.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qexport.evidence.corpus import read_corpus
from qexport.evidence.tokens import tokenize
from qexport.formats.opening import open_artifact
from qexport.recipe.choice import ModelChoice
from qexport.run.model import examine
from qexport.verification.divergence import compare_runs
from qexport.verification.text_run import run_text

ROOT = Path(__file__).parent.parent
EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")  # its cache is float16 otherwise


@dataclass(frozen=True)
class Figures:
    mean: float
    tail: float
    same: float

    def __str__(self) -> str:
        return f"mean {self.mean:9.6f}   99.9 % {self.tail:9.6f}   same first choice {self.same:7.3%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--llama-bin", type=Path, default=os.environ.get("QEXPORT_LLAMA_BIN"))
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q4_K_M"])
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--work", type=Path, help="Where files go; on a disk with room.")
    args = parser.parse_args()
    if args.llama_bin is None:
        parser.error("name llama.cpp's tools with --llama-bin or QEXPORT_LLAMA_BIN")
    source = examine(ModelChoice(str(args.model)), download=False).repaired.view()
    wanted = args.chunks * args.chunk
    tokens = tokenize(read_corpus(args.text), source.files, tokens=wanted, chunk=args.chunk).ids
    print(f"{args.model.name}: {len(tokens)} chunks of {args.chunk} tokens from {args.text.name}", flush=True)
    with tempfile.TemporaryDirectory(dir=args.work) as name, run_text(source, tokens) as exact:
        folder = Path(name)
        every = [word for kind in ("F32", *args.types) for word in ("-q", kind)]
        export = (sys.executable, "-m", "qexport", "gguf", args.model, *every, "-o", folder)
        run(*export, "--no-verify", "--file-name", "file-{type}")
        base, perplexity = folder / "base.kld", Perplexity(args, len(tokens), folder / "base.kld")
        perplexity.store(folder / "file-F32.gguf", args.text)
        print(f"F32 against itself, llama.cpp      {perplexity.compare(folder / 'file-F32.gguf')}")
        for kind in args.types:
            file, decoded = folder / f"file-{kind}.gguf", folder / "decoded.gguf"
            with run_text(open_artifact(file, like=source).view(), tokens) as other:
                found = compare_runs(exact, other)
            ours = Figures(found.mean, found.p99_9, found.same_top)
            run(args.llama_bin / "llama-quantize", "--allow-requantize", file, decoded, "F32")
            same, theirs = perplexity.compare(decoded), perplexity.compare(file)
            print(f"{kind:<8} qexport                   {ours}")
            print(f"{kind:<8} llama.cpp, decoded        {same}")
            print(f"{kind:<8} llama.cpp                 {theirs}")
            print(
                f"{kind:<8} mean, qexport - llama.cpp: {ours.mean - same.mean:+.6f} nats decoded, "
                f"{ours.mean - theirs.mean:+.6f} as it is run ({found.positions} positions)",
                flush=True,
            )
        base.unlink()


class Perplexity:
    """llama-perplexity over one text, against what it stored of one model."""

    def __init__(self, args: argparse.Namespace, chunks: int, base: Path) -> None:
        threads = len(os.sched_getaffinity(0))
        self._command = (args.llama_bin / "llama-perplexity", "-t", threads, "-c", args.chunk, *EXACT)
        self._base = ("--kl-divergence-base", base)
        self._chunks = chunks

    def store(self, model: Path, text: Path) -> None:
        run(*self._command, "-m", model, "-f", text, "--chunks", self._chunks, *self._base)

    def compare(self, model: Path) -> Figures:
        said = run(*self._command, "-m", model, *self._base, "--kl-divergence")
        numbers = []
        for pattern in (
            r"Mean\s+KLD:\s+(-?[\d.]+)",
            r"99\.9%\s+KLD:\s+(-?[\d.]+)",
            r"Same top p:\s+([\d.]+)",
        ):
            found = re.search(pattern, said)
            if found is None:
                raise SystemExit(f"llama-perplexity says nothing of {pattern}:\n{said[-2000:]}")
            numbers.append(float(found[1]))
        return Figures(numbers[0], numbers[1], numbers[2] / 100)


def run(*command: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise SystemExit(f"failed: {command}\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
