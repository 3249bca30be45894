"""The largest magnitude that enters each product: what a scale for all inputs of a matrix is made of.

NVFP4's W4A4 stores such a scale with each matrix, measured over all tokens of a text, with weights as they
are. Of a mixture of experts the two libraries that define it measure different things, so both are there:

* llm-compressor shows *every* token to each expert (``moe_calibrate_all_experts``,
  https://github.com/vllm-project/llm-compressor): no expert is without a number of its own. That costs the
  products of all experts for every token (:attr:`~qexport.evidence.store.Kind.INPUT_LARGEST`).
* ModelOpt leaves tokens to the router, and all experts of a layer have one number for gate and up, one for
  down (``_QuantFusedExperts``, https://github.com/NVIDIA/Model-Optimizer;
  :attr:`~qexport.evidence.store.Kind.SENT_LARGEST`).
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
        sent: of all matrices of a tensor together, float64 ``(1,)``, of what the model itself sends there.
    """

    def __init__(self, told: Observer | None = None) -> None:
        self.tables: dict[str, np.ndarray] = {}
        self.sent: dict[str, np.ndarray] = {}
        self._told = told or Observer()
        self._wanted: frozenset[str] = frozenset()
        self._wanted_sent: frozenset[str] = frozenset()
        self._experts = False
        self._everywhere = False  # whether an expert is shown tokens that are not sent to it
        self._found: dict[str, torch.Tensor] = {}
        self._found_sent: dict[str, torch.Tensor] = {}
        self._latest = Latest()

    def follow(self, names: Collection[str], sent: Collection[str] = (), *, experts: bool) -> None:
        """Collect of these tensors.

        Args:
            names: for ``tables``.
            sent: for ``sent``.
            experts: whether stacks of experts are among ``names``, and shown every token.
        """
        self._wanted, self._wanted_sent, self._experts = frozenset(names), frozenset(sent), experts

    def saw(self, names: tuple[str, ...], matrix: int, matrices: int, inputs: torch.Tensor) -> None:
        for name in names:
            if name in self._wanted:
                self._note(self._found, name, matrix, matrices, inputs)
            if name in self._wanted_sent and not self._everywhere:
                self._note(self._found_sent, name, 0, 1, inputs)
        if not self._everywhere:
            self._told.saw(names, matrix, matrices, inputs)

    def _note(
        self, tables: dict[str, torch.Tensor], name: str, matrix: int, matrices: int, inputs: torch.Tensor
    ) -> None:
        found = tables.get(name)
        if found is None:
            found = tables[name] = torch.zeros(matrices, device=inputs.device)
        # NaN is kept by both; settling says where it is.
        largest = self._latest.of(inputs, lambda: _largest(inputs))
        found[matrix] = torch.maximum(found[matrix], largest)

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
        """Move what was collected since the last time into ``tables`` and ``sent``.

        Raises:
            InputError: it is not finite: damaged weights, named by the first tensor that shows it.
        """
        import numpy as np

        self._latest = Latest()
        for tables, collected in ((self.tables, self._found), (self.sent, self._found_sent)):
            for name, found in collected.items():
                table = found.cpu().numpy().astype(np.float64)
                if not np.isfinite(table).all():
                    raise InputError(
                        f"{label}: what enters {name} is not finite; the weights before it are damaged",
                        hint="Merge again in float32, or from an earlier checkpoint.",
                    )
                tables[name] = np.maximum(tables.get(name, 0), table)
            collected.clear()
        self._told.settle(label)


def _largest(inputs: torch.Tensor) -> torch.Tensor:
    low, high = torch.aminmax(inputs)
    return torch.maximum(-low, high).float()
