"""Why predictions of a mixture are too low: its divergence when every token keeps the source's experts.

    python benchmarks/frozen_routes.py MODEL --heldout HELD_OUT.txt --imatrix FILE [--like Q4_K_M]
        [--measured 4096] [--chunk 512]

A GGUF type with importance, and types chosen for its size: each is compared with the source as it is, and
with the experts that the source sends each token to, weighed by the file's own router. Families whose router
is that of Qwen3.5's mixture.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeTopKRouter

from qexport.evidence.corpus import read_corpus
from qexport.evidence.imatrix_file import read_imatrix
from qexport.evidence.tokens import tokenize
from qexport.formats.gguf.options import GgufOptions
from qexport.onepass.as_stored import as_stored
from qexport.receipt.text import with_error
from qexport.recipe.choice import ModelChoice
from qexport.run.allocation import settle
from qexport.run.model import examine
from qexport.run.target import Target
from qexport.run.watcher import Watcher
from qexport.verification.divergence import compare_runs
from qexport.verification.text_run import run_text


class Routes:
    """Stands in for the router's function: notes where tokens go, or sends them where they went."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.replayed: int | None = None

    def __call__(self, router: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = torch.nn.functional.linear(hidden.reshape(-1, router.hidden_dim), router.weight)
        shares = torch.softmax(logits, dim=-1, dtype=torch.float)
        chosen = torch.topk(shares, router.top_k, dim=-1).indices
        if self.replayed is None:
            self.seen.append(chosen)
        elif self.replayed >= 0:
            chosen = self.seen[self.replayed]
            self.replayed += 1
        top = shares.gather(1, chosen)
        return logits, (top / top.sum(-1, keepdim=True)).to(logits.dtype), chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--heldout", type=Path, required=True)
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--like", default="Q4_K_M")
    parser.add_argument("--measured", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=512)
    args = parser.parse_args()
    diagnosis = examine(ModelChoice(str(args.model)), download=False)
    view, matrix, text = diagnosis.repaired.view(), read_imatrix(args.imatrix), read_corpus(args.heldout)
    ids = tokenize(text, view.files, tokens=args.measured, chunk=args.chunk, model=view.label).ids
    asked = (GgufOptions(like=args.like, imatrix=matrix), GgufOptions((args.like,), imatrix=matrix))
    targets = settle([Target(each, Path("artifact")) for each in asked], diagnosis, Watcher())
    routes = Routes()
    Qwen3_5MoeTopKRouter.forward = lambda router, hidden: routes(router, hidden)
    with run_text(view, ids) as source:
        for name, target in zip(("chosen", "plain"), targets, strict=True):
            plans = [plan for plan, _ in target.plans(diagnosis)]
            predicted = plans[0].assignment.predicted.kld
            for what, start in (("its own experts", -1), ("the source's", 0)):
                routes.replayed = start
                with run_text(as_stored(view, plans), ids) as run:
                    found = compare_runs(source, run)
                share = predicted / found.mean
                print(f"{name}, {what}: {with_error(found.kld.estimate)}, predicted / measured {share:.2f}")


if __name__ == "__main__":
    main()
