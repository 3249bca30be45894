"""The oracle of the way back: torch's own backward through transformers' whole model, watched by hooks.

The loss is minus the log-probability of labels that are given, summed over all tokens. The MTP block is the
one of `plain_draft`, with its own labels. Nothing here comes from `qexport.evidence`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_draft import Draft
from torch.nn.functional import silu
from whole_model import Sums

Told = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Gradients(Sums):
    """Squared gradients of outputs; ``head`` are squared inputs of lm_head, ``embedding`` of its result."""

    head: np.ndarray = field(default_factory=lambda: np.zeros(0))
    embedding: np.ndarray = field(default_factory=lambda: np.zeros(0))
    final: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    joint: dict[str, np.ndarray] = field(default_factory=dict)

    def watch(
        self, out: torch.Tensor, inputs: torch.Tensor, name: str, matrix: int = 0, matrices: int = 1
    ) -> torch.Tensor:
        """The same tensor, whose gradient will be added; ``joint``: with squares of what entered."""
        entered = inputs.detach().reshape(-1, inputs.shape[-1]).double().square().sum(-1)

        def came(gradient: torch.Tensor) -> None:
            self.add(name, gradient, matrix, matrices)
            returned = gradient.reshape(len(entered), -1).double().square().sum(-1)
            pair = self.joint.setdefault(name, np.zeros((matrices, 2)))
            pair[matrix] += ((returned * entered).sum().item(), entered.sum().item())

        out.register_hook(came)
        return out


def loss_of(logits: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    chosen = logits.log_softmax(-1).gather(-1, torch.from_numpy(labels)[..., None])
    return -chosen.sum()


def whole_gradient(folder: Path, ids: np.ndarray, labels: np.ndarray) -> Gradients:
    """Every product of the model in ``folder``, its head and its embedding."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    found = Gradients()
    for name, module in model.model.named_modules():
        _watch(found, f"model.{name}", module)
    head = model.get_output_embeddings()
    rows = model.get_input_embeddings().weight
    tied = rows is head.weight

    # Each token a row of its own, so that the gradient is that of the row before it is scaled.
    table = model.get_input_embeddings()
    each = rows.detach()[torch.from_numpy(ids).long()].reshape(-1, rows.shape[1]).clone().requires_grad_()
    table.weight = torch.nn.Parameter(each)
    table.padding_idx = None  # a row of the whole table, and here of the first token
    leaf = table.weight
    embedded = table(torch.arange(ids.size).view(ids.shape))
    hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    weight = rows if tied else head.weight
    raw = hidden @ weight.t()
    found.watch(raw, hidden, "lm_head.weight")
    cap = getattr(model.config, "final_logit_softcapping", None)
    loss_of(torch.tanh(raw / cap) * cap if cap else raw, labels).backward()
    found.head = hidden.detach().reshape(-1, hidden.shape[-1]).double().square().sum(0).numpy()[None]
    found.embedding = leaf.grad.double().square().sum(0).numpy()[None]
    found.final = hidden.detach()
    return found


def _watch(found: Gradients, name: str, module: Any) -> None:
    kind = type(module).__name__
    if kind.endswith("Experts"):
        module.forward = lambda *args: _experts(found, name, module, *args)
    elif kind.endswith("Router"):
        module.register_forward_hook(
            lambda _module, args, out: (found.watch(out[0], args[0], f"{name}.weight"), *out[1:])
        )
    elif isinstance(module, torch.nn.Linear):
        module.register_forward_hook(lambda _module, args, out: found.watch(out, args[0], f"{name}.weight"))


def _experts(
    found: Gradients,
    name: str,
    module: Any,
    hidden: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    out, many = torch.zeros_like(hidden), len(module.down_proj)
    for expert in range(many):
        tokens, place = torch.nonzero(chosen == expert, as_tuple=True)
        if not len(tokens):
            continue

        def times(
            inputs: torch.Tensor, weight: torch.Tensor, part: str, expert: int = expert
        ) -> torch.Tensor:
            return found.watch(inputs @ weight.t(), inputs, f"{name}.{part}_proj.weight", expert, many)

        gate, up = module.gate_up_proj[expert].chunk(2)
        inner = silu(times(hidden[tokens], gate, "gate")) * times(hidden[tokens], up, "up")
        back = times(inner, module.down_proj[expert], "down")
        out = out.index_add(0, tokens, back * weights[tokens, place, None])
    return out


@dataclass
class DraftGradient(Draft):
    """The MTP block with its way back."""

    found: Gradients = field(default_factory=Gradients)

    def back(self, ids: np.ndarray, hidden: torch.Tensor, labels: np.ndarray) -> Gradients:
        self.run(ids, hidden.clone().requires_grad_())
        head = self.tensors.get("lm_head.weight", self.tensors["model.embed_tokens.weight"])
        loss_of(self.out @ head.t(), labels).backward()
        return self.found

    def times(self, inputs: torch.Tensor, name: str) -> torch.Tensor:
        return self.found.watch(inputs @ self.tensors[f"{name}.weight"].t(), inputs, f"{name}.weight")

    def into(self, inputs: torch.Tensor, weight: torch.Tensor, name: str, expert: int) -> torch.Tensor:
        many = self.config["num_experts"]
        return self.found.watch(inputs @ weight.t(), inputs, f"{name}.weight", expert, many)
