"""The largest magnitude that enters each product: what a scale for all inputs of a matrix is made of.

NVFP4's W4A4 stores such a scale with each matrix. llm-compressor measures it with its observer
``static_minmax``: over all tokens of the text, with weights as they are, and of a mixture of experts each
expert on *every* token, not on those that the router sends to it (``moe_calibrate_all_experts``,
https://github.com/vllm-project/llm-compressor). So it is here: no expert is without a number, and a token
that another text sends to an expert finds room there. That costs the products of all experts for every token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qexport.errors import InputError
from qexport.evidence.observe import Latest, Observer

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np


class LargestInputs(Observer):
    """Collects what it is asked to follow, and tells another observer of what the model itself does.

    Attributes:
        tables: canonical name -> float64 ``(matrices,)``, of the layers that have settled.
    """

    def __init__(self, told: Observer | None = None) -> None:
        self.tables: dict[str, np.ndarray] = {}
        self._told = told or Observer()
        self._wanted: frozenset[str] = frozenset()
        self._experts = False
        self._everywhere = False  # whether an expert is shown tokens that are not sent to it
        self._found: dict[str, torch.Tensor] = {}
        self._latest = Latest()

    def follow(self, names: Collection[str], *, experts: bool) -> None:
        """Collect of these tensors; ``experts``: whether stacks of experts are among them."""
        self._wanted, self._experts = frozenset(names), experts

    def saw(self, names: tuple[str, ...], matrix: int, matrices: int, inputs: torch.Tensor) -> None:
        for name in names:
            if name in self._wanted:
                found = self._found.get(name)
                if found is None:
                    found = self._found[name] = torch.zeros(matrices, device=inputs.device)
                # NaN is kept by both; settling says where it is.
                largest = self._latest.of(inputs, lambda: _largest(inputs))
                found[matrix] = torch.maximum(found[matrix], largest)
        if not self._everywhere:
            self._told.saw(names, matrix, matrices, inputs)

    def chose(self, experts: torch.Tensor) -> None:
        self._told.chose(experts)

    def reached(self, stack: torch.nn.Module, states: torch.Tensor) -> None:
        """Show every token to every expert; what comes out is thrown away."""
        if not self._experts:
            return
        count = next(len(weight) for weight in stack.parameters() if weight.ndim == 3)
        whole = torch.ones((len(states), 1), dtype=states.dtype, device=states.device)
        self._everywhere = True
        try:
            for expert in range(count):
                stack.forward(states, torch.full_like(whole, expert, dtype=torch.long), whole)
        finally:
            self._everywhere = False

    def settle(self, label: str) -> None:
        """Move what was collected since the last time into ``tables``.

        Raises:
            InputError: it is not finite: damaged weights, named by the first tensor that shows it.
        """
        import numpy as np

        self._latest = Latest()
        for name, found in self._found.items():
            table = found.cpu().numpy().astype(np.float64)
            if not np.isfinite(table).all():
                raise InputError(
                    f"{label}: what enters {name} is not finite; the weights before it are damaged",
                    hint="Merge again in float32, or from an earlier checkpoint.",
                )
            self.tables[name] = np.maximum(self.tables.get(name, 0), table)
        self._found = {}
        self._told.settle(label)


def _largest(inputs: torch.Tensor) -> torch.Tensor:
    low, high = torch.aminmax(inputs)
    return torch.maximum(-low, high).float()
