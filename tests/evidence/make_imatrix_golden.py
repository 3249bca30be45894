"""Write `golden/<case>.gguf.gz` anew, by llama-imatrix: `python tests/evidence/make_imatrix_golden.py`.

A case is a zoo checkpoint, made small, converted by llama.cpp's own converter (never by qexport).
llama-imatrix reads `text()` in chunks of `CHUNK` tokens. Its file is kept whole, so that ours can be compared
byte for byte where only the form is at stake. Needs QEXPORT_LLAMA_CPP and QEXPORT_LLAMA_BIN.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oracle import toolchain
from zoo import ZOO, build

GOLDEN = Path(__file__).parent / "golden"
CHUNK = 128
CHUNKS = 8
TEXT_NAME = "text.txt"
STATISTICS = "hybrid_moe"
"""The case whose statistics are kept, too."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # Value heads are twice the key heads in both hybrids: ssm_out's columns are in another order than here.
    "hybrid": ("qwen3_5", {"hidden": 192, "intermediate": 320}),
    "hybrid_moe": ("qwen3_5_moe", {"hidden": 128, "intermediate": 96}),
    "llama": ("llama3", {}),  # a bos token at the start of every chunk, scaled rope, tied
    "moe": ("qwen3_moe", {"hidden": 128, "intermediate": 96}),
}

DESCRIBED = "described"
"""`hybrid_moe` by a newer llama-imatrix (b11434): with sums of inputs, and statistics of tensors."""

_WORDS = """
the model reads this text in chunks of tokens and def return import for while x = y + 1 ; { } ( )
12 365 2026 naïve größer 模型 Привет select from where not true false , . : I you it's We'll
"""


def text() -> str:
    """Some 3000 words drawn by the bits of a fixed generator; nothing in it looks like a special token."""
    words = [*_WORDS.split(), "\n", "\n\n\n", ""]
    drawn = np.random.PCG64(11).random_raw(3000) >> np.uint64(33)
    return " ".join(words[int(number) % len(words)] for number in drawn) + "\n"


def collect(model: Path, work: Path, *flags: str) -> Path:
    """llama-imatrix on a GGUF file; the matrix it writes. `work` gets the text."""
    (work / TEXT_NAME).write_text(text(), encoding="utf-8")
    out = work / "imatrix.gguf"
    command = [str(toolchain.tool("llama-imatrix")), "-m", str(model.resolve()), "-f", TEXT_NAME]
    command += ["-o", out.name, "-c", str(CHUNK), "--chunks", str(CHUNKS), "-t", "2", "--no-ppl", *flags]
    run = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if run.returncode != 0 or not out.is_file():
        raise toolchain.ToolchainError("\n".join((run.stdout + run.stderr).splitlines()[-15:]))
    return out


def make(case: str, work: Path) -> Path:
    """The checkpoint of a case, and llama-imatrix's file of it."""
    name, options = CASES[case]
    entry = ZOO[name]
    model = build(name, work / name, **options)
    out = work / "model.gguf"
    kind = {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}[entry.options.dtype]
    toolchain.convert(model, out, kind, pre=entry.pre, flags=entry.convert_flags)
    return collect(out, work)


def table(case: str, work: Path) -> list[list[str]]:
    """What `llama-imatrix --show-statistics` prints of a golden: the cells of each tensor's row.

    Its log is written by a thread that it seldom waits for at its end, so it is asked until all is there.
    """
    (work / "imatrix.gguf").write_bytes(load(case))
    command = [str(toolchain.tool("llama-imatrix")), "-m", "none", "--in-file", "imatrix.gguf"]
    for _ in range(1000):
        run = subprocess.run(
            [*command, "--show-statistics"], cwd=work, capture_output=True, text=True, check=True
        )
        lines = [re.sub(r"^\S+ I ", "", line) for line in run.stderr.splitlines()]
        wanted = re.search(r"imatrix\.gguf \((\d+) tensors\)", run.stderr)
        rows = [[cell.strip().rstrip("%") for cell in line.split("\t")] for line in lines]
        rows = [row for row in rows if len(row) == 13 and row[0].isdigit()]
        if wanted and len(rows) == int(wanted[1]):
            return rows
    raise toolchain.ToolchainError("llama-imatrix never printed all of its table")


def load(case: str) -> bytes:
    """A golden from the repository; a missing one is an error."""
    return gzip.decompress((GOLDEN / f"{case}.gguf.gz").read_bytes())


def main() -> None:
    """Make all of them."""
    GOLDEN.mkdir(exist_ok=True)
    for case in sys.argv[1:] or (*CASES, DESCRIBED):
        with tempfile.TemporaryDirectory(prefix="qexport-imatrix-") as work:
            data = make("hybrid_moe" if case == DESCRIBED else case, Path(work)).read_bytes()
        path = GOLDEN / f"{case}.gguf.gz"
        path.write_bytes(gzip.compress(data, 9, mtime=0))
        if case == STATISTICS:
            with tempfile.TemporaryDirectory(prefix="qexport-imatrix-") as work:
                rows = table(case, Path(work))
            (GOLDEN / f"{case}.statistics.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
        print(f"{case}: {len(data)} bytes, {path.stat().st_size} compressed", flush=True)


if __name__ == "__main__":
    main()
