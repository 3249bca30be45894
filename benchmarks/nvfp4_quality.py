"""What the searches for NVFP4 block scales gain: errors of weights, and divergence of the model's answers.

    python benchmarks/nvfp4_quality.py MODEL --imatrix FILE --text HELD_OUT.txt [--scope mlp] [--tokens 2048]

Each way of choosing scales is encoded and decoded again in memory, and transformers runs the decoded model on
held-out text: the Kullback-Leibler divergence from the model as it is, in nats per token. Squared errors are
relative to the usual scales, plain and weighted by importance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qexport.checkpoint.local import LocalCheckpoint
from qexport.codecs.contract import Matrices
from qexport.codecs.decoded import e2m1, e4m3, grouped
from qexport.codecs.engines import encode_rows
from qexport.doctor import diagnose
from qexport.evidence.imatrix_file import read_imatrix
from qexport.evidence.store import Kind
from qexport.formats.gguf.importance import evidence_of
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.nvfp4.plan import plan_nvfp4

WINDOW = 512


def logits(model: torch.nn.Module, windows: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(window[None]).logits[0].log_softmax(-1) for window in windows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--scope", default="mlp")
    parser.add_argument("--tokens", type=int, default=2048)
    args = parser.parse_args()
    repaired = diagnose(LocalCheckpoint(args.model)).repaired
    matrix = read_imatrix(args.imatrix)
    weights = evidence_of(repaired.view(), matrix).tables[Kind.INPUT_SQUARES]
    ids = AutoTokenizer.from_pretrained(args.model)(args.text.read_text(), return_tensors="pt").input_ids[0]
    windows = ids[: args.tokens // WINDOW * WINDOW].view(-1, WINDOW)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    before, parameters = logits(model, windows), dict(model.named_parameters())
    usual: tuple[float, float] | None = None
    for search in ("max", "mse", "importance"):
        options = Nvfp4Options(
            scope=args.scope,
            scale_search=search,
            importance=matrix if search == "importance" else None,
        )
        plain = weighted = 0.0
        planned = [t for t in plan_nvfp4(repaired, options).tensors if t.stored.name == "NVFP4"]
        rows = {
            t.name: torch.cat([p.checkpoint.read_rows(p.name, p.start, p.stop) for p in t.source.pieces])
            for t in planned
        }
        for tensor in planned:
            fused = tensor.need(Kind.LARGEST).of
            largest = max(rows[name].abs().max().item() for name in fused)
            squares = tensor.need(Kind.INPUT_SQUARES) and weights[tensor.name]
            known = Matrices(None, squares, np.array([largest]))
            ((packed, scales, shared),) = encode_rows(tensor.stored, rows[tensor.name], 0, known)
            steps = e4m3(torch.from_numpy(scales)) * float(shared[0])
            decoded = grouped(e2m1(torch.from_numpy(packed)), steps)
            squares = (decoded - rows[tensor.name].float()).square()
            plain += squares.sum().item()
            weighted += (squares * torch.from_numpy(weights[tensor.name])).sum().item()
            parameters[tensor.name].data.copy_(decoded)
        usual = usual or (plain, weighted)
        after = logits(model, windows)
        divergence = (before.exp() * (before - after)).sum(-1).mean().item()
        same = (before.argmax(-1) == after.argmax(-1)).float().mean().item()
        print(
            f"{search:>10}: squared error {plain / usual[0]:.3f}, weighted {weighted / usual[1]:.3f}, "
            f"divergence {divergence:.4f}, same first choice {same:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
