"""The oracle of the layer-streamed pass: transformers' whole model in memory, watched by module hooks.

It shares nothing with `qexport.evidence` but transformers: the checkpoint is read by `from_pretrained`,
inputs are seen by hooks on modules (the pass watches function calls), squares are summed in float64, and
experts are computed here, one by one, from the router's own choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

Rounding = Callable[[torch.Tensor], torch.Tensor]


def bf16(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.bfloat16).float()


def exact(values: torch.Tensor) -> torch.Tensor:
    return values


@dataclass
class Sums:
    """Sums of squares by tensor, float64 ``(matrices, columns)``, and tokens seen by each matrix."""

    sums: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, inputs: torch.Tensor, matrix: int = 0, matrices: int = 1) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1]).double()
        if name not in self.sums:
            self.sums[name] = np.zeros((matrices, rows.shape[1]))
            self.counts[name] = np.zeros(matrices, np.int64)
        self.sums[name][matrix] += rows.square().sum(0).numpy()
        self.counts[name][matrix] += len(rows)


@dataclass
class Seen(Sums):
    """What went through a whole model; ``final`` are the hidden states after the last norm."""

    final: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def run_whole(
    folder: Path, ids: np.ndarray, *, operands: Rounding = exact, results: Rounding = exact
) -> Seen:
    """Every chunk of ``ids`` through the model in ``folder``, in float32.

    ``operands`` and ``results`` are applied to what enters and leaves each product of a matrix that is
    bf16 in the pass; routers stay float32. Weights are taken to be bf16 numbers already.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()  # tests want none at any time
    # It has no class for the language model of Qwen3-VL alone.
    alone = AutoConfig.from_pretrained(folder).model_type not in ("qwen3_vl", "qwen3_vl_moe")
    auto = AutoModelForCausalLM if alone else AutoModelForImageTextToText
    whole = auto.from_pretrained(folder, dtype=torch.float32).eval()
    model = whole.model if alone else whole.model.language_model
    seen = Seen()
    for name, module in model.named_modules():
        watch(seen, f"model.{name}", module, operands, results)
    with torch.no_grad():
        seen.final = model(torch.from_numpy(ids).long(), use_cache=False).last_hidden_state
    return seen


def watch(seen: Sums, name: str, module: Any, operands: Rounding, results: Rounding) -> None:
    kind = type(module).__name__
    if kind.endswith("Experts"):
        module.forward = lambda *args: experts(seen, name, module, args, operands, results)
    elif kind.endswith("Router") or name.endswith("shared_expert_gate"):
        module.register_forward_pre_hook(lambda _, args: seen.add(f"{name}.weight", args[0]))
    elif isinstance(module, torch.nn.Linear):

        def before(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            seen.add(f"{name}.weight", args[0])
            return (operands(args[0]),)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(lambda _module, _args, out: results(out))


def experts(
    seen: Sums,
    name: str,
    module: Any,
    args: tuple[torch.Tensor, ...],
    operands: Rounding,
    results: Rounding,
) -> torch.Tensor:
    """Each expert over the tokens that chose it."""
    hidden, chosen, weights = args
    out = torch.zeros_like(hidden)
    many = len(module.down_proj)
    for expert in range(many):
        tokens, place = torch.nonzero(chosen == expert, as_tuple=True)
        if not len(tokens):
            continue
        inputs = hidden[tokens]
        for part in ("gate_proj", "up_proj"):
            seen.add(f"{name}.{part}.weight", inputs, expert, many)
        gate, up = module.gate_up_proj[expert].chunk(2)
        inner = torch.nn.functional.silu(results(operands(inputs) @ gate.t()))
        inner = inner * results(operands(inputs) @ up.t())
        seen.add(f"{name}.down_proj.weight", inner, expert, many)
        back = results(operands(inner) @ module.down_proj[expert].t())
        out.index_add_(0, tokens, back * weights[tokens, place, None])
    return out


def random_ids(vocabulary: int, chunks: int, size: int, seed: int = 0) -> np.ndarray:
    """Token ids, int32 ``(chunks, size)``."""
    words = np.random.PCG64(seed).random_raw(chunks * size)
    return (words % np.uint64(vocabulary)).astype(np.int32).reshape(chunks, size)


def worst(found: Any, expected: Sums, names: Any = None) -> float:
    """The largest difference of a column's sum, relative to the mean of its matrix; counts must be equal.

    Every tensor that was expected must be there. A column near zero is judged by its matrix, because rounding
    errors come from the products before it, which do not know how small it is.
    """
    largest = 0.0
    for name in names or expected.sums:
        assert found.counts[name].tolist() == expected.counts[name].tolist(), name
        scale = np.maximum(expected.sums[name].mean(axis=1, keepdims=True), 1e-30)
        largest = max(largest, float((np.abs(found.sums[name] - expected.sums[name]) / scale).max()))
    return largest
