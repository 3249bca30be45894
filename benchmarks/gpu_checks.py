"""What needs a GPU, in one run: the streamed pass both ways, a head's training, processes, speed.

    python benchmarks/qwen35_shape.py MODEL --layers 8       # or a merge of your own
    python benchmarks/gpu_checks.py MODEL [--tokens 8192] [--chunk 512] [--device cuda] [--processes 2]

Each line is a check: passed, failed, or not run and why. The exit code is 1 where one failed. The first half
compares numbers in float32 with those of the CPU; the second half times `mixed` precision.
`--device cpu` goes through all of it without a GPU, which says that this program works and nothing more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qexport.evidence.backward import TwoWayStream
from qexport.evidence.chained import HeadStream
from qexport.evidence.imatrix_file import read_imatrix
from qexport.evidence.observe import InputSquares
from qexport.evidence.options import StreamOptions
from qexport.evidence.sensitivity import Summed
from qexport.headtune.logits import Logits
from qexport.headtune.options import TrainOptions
from qexport.headtune.states import states_of
from qexport.headtune.text import Document, chunked
from qexport.headtune.train import Trainer
from qexport.recipe.choice import ModelChoice
from qexport.run.model import examine

ROOT = Path(__file__).parent.parent
# Float32 sums in another order, through all layers; a router near a tie decides otherwise more often.
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Run:
    """One way forth and back."""

    squares: InputSquares
    gradients: dict[str, np.ndarray]
    labels: np.ndarray
    seconds: float
    peak: float


def once(model: Path, ids: np.ndarray, device: str, precision: str, back: int) -> Run:
    view = examine(ModelChoice(str(model)), download=False).repaired.view()
    stream = TwoWayStream(view, StreamOptions(device=device, precision=precision), at_most=back)
    squares = InputSquares()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    returned = stream.run_both(ids, squares)
    seconds = time.perf_counter() - begun
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.startswith("cuda") else 0.0
    return Run(squares, dict(returned.sensitivity.tables[Summed.GRADIENTS]), returned.labels, seconds, peak)


def distance(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> tuple[float, str]:
    """The worst mean relative difference over tensors, and of which."""
    assert found.keys() == expected.keys()
    worst = (0.0, "")
    for name, table in expected.items():
        scale = float(np.abs(table).mean()) or 1.0
        worst = max(worst, (float(np.abs(found[name] - table).mean()) / scale, name))
    return worst


def say(check: str, state: str, words: str) -> bool:
    print(f"{state:>8}  {check}: {words}", flush=True)
    return state != "failed"


def judged(check: str, worst: tuple[float, str]) -> bool:
    state = "passed" if worst[0] < TOLERANCE else "failed"
    return say(check, state, f"largest mean relative difference {worst[0]:.1e} ({worst[1]})")


def numbers(model: Path, ids: np.ndarray, device: str) -> bool:
    """Float32 there against float32 here."""
    here = once(model, ids, "cpu", "float32", ids.size // 2)
    there = once(model, ids, device, "float32", ids.size // 2)
    alike = float((here.labels == there.labels).mean())
    return all(
        [
            judged(f"forward on {device}", distance(there.squares.sums, here.squares.sums)),
            say(f"labels on {device}", "passed" if alike > 0.99 else "failed", f"{alike:.2%} are the CPU's"),
            judged(f"backward on {device}", distance(there.gradients, here.gradients)),
            say("seconds", "passed", f"{here.seconds:.1f} on the CPU, {there.seconds:.1f} on {device}"),
        ]
    )


def speed(model: Path, ids: np.ndarray, device: str) -> bool:
    """Forth alone is what an importance matrix costs; the second run has its kernels loaded."""
    once(model, ids[:2], device, "mixed", 2)
    both = once(model, ids, device, "mixed", 4096)
    return say(
        f"mixed on {device}",
        "passed",
        f"{ids.size / both.seconds:.0f} tokens/s with sensitivities of 4096, peak {both.peak:.0f} MiB",
    )


def processes(model: Path, ids: np.ndarray, device: str, count: int) -> bool:
    """torchrun's matrix against one process's, with sensitivities."""
    check = f"{count} processes on {device}"
    if device.startswith("cuda") and torch.cuda.device_count() < count:
        return say(check, "not run", f"there are {torch.cuda.device_count()} CUDA devices here")
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), []
        corpus = folder / "ids.jsonl"
        corpus.write_text("\n".join(json.dumps({"input_ids": row}) for row in ids.tolist()))
        for start in ([], many):
            out = folder / f"{len(start)}.gguf_file"
            words = ["--corpus", str(corpus), "-o", str(out), "--calib-chunk", str(ids.shape[1])]
            words += ["--device", device, "--precision", "float32", "--sensitivity"]
            words += ["--sensitivity-tokens", str(ids.size // 2)]
            command = [sys.executable, *start, "-m", "qexport", "imatrix", str(model), *words]
            begun = time.perf_counter()
            done = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                return say(check, "failed", done.stderr[-2000:])
            found.append((read_imatrix(out), time.perf_counter() - begun))
    (one, alone), (both, together) = found
    assert one.sensitivity is not None
    assert both.sensitivity is not None
    gradients = (dict(each.sensitivity.tables[Summed.GRADIENTS]) for each, _ in found)
    return all(
        [
            judged(f"{check}, sums", distance(dict(both.sums), dict(one.sums))),
            judged(f"{check}, sensitivities", distance(*reversed(list(gradients)))),
            say("whole commands", "passed", f"{alone:.1f} s alone, {together:.1f} s together"),
        ]
    )


def head_steps(model: Path, ids: np.ndarray, device: str, precision: str, steps: int, work: Path) -> Steps:
    """The trunk's states, and some steps of its head's training."""
    view = examine(ModelChoice(str(model), vision="drop"), download=False).repaired.view()
    stream = HeadStream(view, StreamOptions(device=device, precision=precision))
    documents = [Document(tuple(row), 0, "ids", str(number)) for number, row in enumerate(ids.tolist())]
    text = chunked({"train": documents}, ids.shape[1])
    states = states_of(stream, text.ids, work)
    logits = Logits(view, stream.device, exact=precision == "float32")
    chain, embedded = stream.head(text.ids.shape[1]), stream.embedded(text.ids)
    trainer = Trainer(
        chain,
        logits,
        text,
        states,
        embedded,
        TrainOptions(batch_tokens=min(ids.size, 4096)),
        judge=lambda: 0.0,
        checkpoint=work / "training.pt",
        rounded=precision != "float32",
    )
    loss, begun = 0.0, time.perf_counter()
    for step in range(steps):
        loss = trainer.gradients(trainer.batch(step))
    seconds = (time.perf_counter() - begun) / steps
    gradients = {
        name: (parameter.grad / steps).cpu().numpy()
        for name, parameter in chain.module.named_parameters()
        if parameter.grad is not None
    }
    return Steps(loss, gradients, seconds, len(trainer.batch(0)) * text.ids.shape[1])


@dataclass(frozen=True)
class Steps:
    """Of a head's training: the last loss, mean gradients, seconds and tokens of a step."""

    loss: float
    gradients: dict[str, np.ndarray]
    seconds: float
    tokens: int


def head_tuning(model: Path, ids: np.ndarray, device: str) -> bool:
    """Loss and gradients of a head's training in float32 there against here; how fast it is when rounded."""
    view = examine(ModelChoice(str(model), vision="drop"), download=False).repaired.view()
    if not view.mtp_layers:
        return say("head tuning", "not run", f"{view.label} has no MTP head")
    with tempfile.TemporaryDirectory() as name:
        here = head_steps(model, ids, "cpu", "float32", 1, Path(name) / "here")
        there = head_steps(model, ids, device, "float32", 1, Path(name) / "there")
        fast = head_steps(model, ids, device, "mixed", 3, Path(name) / "fast")
    apart = abs(there.loss - here.loss) / abs(here.loss)
    return all(
        [
            judged(f"head's loss on {device}", (apart, f"{there.loss:.4f} and {here.loss:.4f}")),
            judged(f"head's gradients on {device}", distance(there.gradients, here.gradients)),
            say(f"head's steps on {device}", "passed", f"{fast.tokens / fast.seconds:.0f} tokens/s, mixed"),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        say("all of it", "not run", f"torch {torch.__version__} sees no CUDA device here")
        return
    config = json.loads((args.model / "config.json").read_text())
    vocabulary = config.get("text_config", config)["vocab_size"]
    ids = np.random.default_rng(0).integers(0, vocabulary, args.tokens - args.tokens % args.chunk)
    ids = ids.astype(np.int32).reshape(-1, args.chunk)
    fine = [
        numbers(args.model, ids, args.device),
        speed(args.model, ids, args.device),
        head_tuning(args.model, ids, args.device),
        processes(args.model, ids, args.device, args.processes),
    ]
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()
