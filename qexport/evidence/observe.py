"""Watching every matrix product of a forward pass, whatever module asks for it.

Modules of transformers end in ``torch.nn.functional.linear``, stacked experts included (one call per expert,
with a slice of the stack). A torch function mode sees these calls; the weight's memory says which tensor it
is and which expert. So nothing is known here of module names or families, and nothing is patched.

The mode also does the arithmetic of mixed precision. Activations are float32 between products, and inputs of
a product are rounded to the weight's dtype, as in llama.cpp. What is left to choose is the result: float32,
which is llama.cpp's arithmetic, or bf16, which a CPU with bf16 instructions does twice as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.overrides import TorchFunctionMode

from qexport.errors import InputError
from qexport.evidence.rounded_inputs import rounded_inputs

if TYPE_CHECKING:
    import numpy as np


class Observer:
    """What is told of every product; this one ignores it. Subclasses collect."""

    def saw(self, names: tuple[str, ...], matrix: int, matrices: int, inputs: torch.Tensor) -> None:
        """``inputs``, float32 ``(tokens, columns)``, are about to be multiplied by these tensors.

        Args:
            names: canonical names of the tensors that share the weight (gate and up of an expert), in the
                order of their rows.
            matrix, matrices: which one of a stack, and how many there are; 0 and 1 for a plain matrix.
        """

    def sent_back(
        self,
        names: tuple[str, ...],
        matrix: int,
        matrices: int,
        gradients: torch.Tensor,
        entered: torch.Tensor,
    ) -> None:
        """``gradients``, float32 ``(tokens, rows)``, have come back to the results of such a product.

        Args:
            entered: sums of squares of what entered it, ``(tokens,)``.
        """

    def chose(self, experts: torch.Tensor) -> None:
        """The tokens of a batch are about to be sent to these experts, integers ``(tokens, chosen)``."""

    def reached(self, stack: torch.nn.Module, states: torch.Tensor) -> None:
        """These states, ``(tokens, width)``, are about to enter the stack of a layer's experts."""

    def settle(self, label: str) -> None:
        """All products of a layer, which is called ``label`` in messages, have been seen."""


@contextmanager
def told_of_experts(modules: Iterable[torch.nn.Module], observer: Observer) -> Iterator[None]:
    """The observer is told what these modules' routers choose, whatever a family's router is.

    transformers calls the stack of a layer's experts with the states and with the experts of each.
    """

    def tell(stack: torch.nn.Module, args: Any) -> None:
        observer.chose(args[1])
        observer.reached(stack, args[0])

    handles = [
        part.register_forward_pre_hook(tell)
        for module in modules
        for name, part in module.named_modules()
        if name.rpartition(".")[2] == "experts"
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Meeting(Observer):
    """Tells another observer, and meets the other processes after each layer.

    Args:
        meet: raises what is wrong with one of them.
    """

    def __init__(self, told: Observer, meet: Callable[[], None]) -> None:
        self._told = told
        self._meet = meet

    def saw(self, names: tuple[str, ...], matrix: int, matrices: int, inputs: torch.Tensor) -> None:
        self._told.saw(names, matrix, matrices, inputs)

    def settle(self, label: str) -> None:
        self._told.settle(label)
        self._meet()


class Products(TorchFunctionMode):
    """Tells an observer of the products with the weights it was given.

    Args:
        observer: who is told.
        wide: results in float32, whatever the weight's dtype.
        inputs: canonical name -> ``(matrices,)`` scales of those whose inputs are rounded to NVFP4.

    :meth:`watch` names the weights of one layer; products with others are done and not told. Where inputs
    want gradients, those of the results are told, too. Weights are fixed: they get none.
    """

    def __init__(
        self, observer: Observer, *, wide: bool, inputs: Mapping[str, np.ndarray] | None = None
    ) -> None:
        super().__init__()
        self._observer = observer
        self._wide = wide
        self._inputs = inputs or {}
        self._names: Mapping[int, tuple[str, ...]] = {}
        self._weights: Mapping[str, torch.Tensor] = {}
        self._rounded = Latest()

    def watch(self, weights: Mapping[str, torch.Tensor], names: Mapping[str, tuple[str, ...]]) -> None:
        """From now on these parameters, under these canonical names."""
        self._rounded = Latest()
        self._weights = weights  # keeps the memory that the addresses below stand for
        self._names = {weights[name].untyped_storage().data_ptr(): names[name] for name in weights}

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.nn.functional.linear:
            return func(*args, **(kwargs or {}))
        return self._linear(*args, **(kwargs or {}))

    def _linear(
        self,
        input: torch.Tensor,  # noqa: A002  # torch's name
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows, columns = weight.shape
        names = self._names.get(weight.untyped_storage().data_ptr())
        inputs = input.reshape(-1, columns)
        tell: Callable[[torch.Tensor, torch.Tensor], None] | None = None
        if names is not None and len(inputs):
            matrices = weight.untyped_storage().nbytes() // (weight.element_size() * rows * columns)
            matrix = weight.storage_offset() // (rows * columns)
            self._observer.saw(names, matrix, matrices, inputs)
            tell = partial(self._observer.sent_back, names, matrix, matrices)
            if names[0] in self._inputs:
                inputs = rounded_inputs(inputs, float(self._inputs[names[0]][matrix]))
        if inputs.requires_grad:
            out: torch.Tensor = _Differentiable.apply(inputs, weight, self, tell)  # type: ignore[no-untyped-call]
        else:
            out = self.product(inputs, weight).to(input.dtype)
        if bias is not None:
            out += bias.to(out.dtype)
        return out.view(*input.shape[:-1], rows)

    def product(self, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """``inputs @ weight.T`` in this arithmetic."""
        if weight.dtype == torch.float32:
            return torch._C._nn.linear(inputs, weight)
        operand, weight = self._operands(inputs, weight)
        if self._wide and weight.is_cuda:
            return torch.mm(operand, weight.t(), out_dtype=torch.float32)
        with _onednn():
            return torch._C._nn.linear(operand, weight)

    def back(self, gradients: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """``gradients @ weight``, likewise: what goes back to the inputs."""
        if weight.dtype == torch.float32:
            return gradients @ weight
        operand, weight = self._operands(gradients, weight)
        if self._wide and weight.is_cuda:
            return torch.mm(operand, weight, out_dtype=torch.float32)
        with _onednn():
            return operand @ weight

    def _operands(self, values: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both rounded to the weight's dtype; on a CPU in float32 again where results shall be."""
        if self._wide and not weight.is_cuda:
            return self._rounded.of(values, lambda: values.to(weight.dtype).float()), weight.float()
        return self._rounded.of(values, lambda: values.to(weight.dtype)), weight


class _Differentiable(torch.autograd.Function):
    """A product whose weight is fixed: gradients are told and go back to inputs, which need not be kept."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        products: Products,
        tell: Callable[[torch.Tensor, torch.Tensor], None] | None,
    ) -> torch.Tensor:
        ctx.weight, ctx.products, ctx.tell = weight, products, tell
        ctx.entered = inputs.float().square().sum(-1)
        return products.product(inputs, weight).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        if ctx.tell is not None:
            ctx.tell(gradients, ctx.entered)
        return ctx.products.back(gradients, ctx.weight).to(gradients.dtype), None, None, None


class Latest:
    """What was made of the latest tensor: query, key and value see the same one, and so do gate and up."""

    def __init__(self) -> None:
        self._key: Any = None
        self._inputs: torch.Tensor | None = None  # held, so that its address stays its own
        self._made: torch.Tensor | None = None

    def of(self, inputs: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        key = (inputs.data_ptr(), inputs.shape, inputs._version)
        if self._made is None or self._key != key:
            self._key, self._inputs, self._made = key, inputs, make()
        return self._made


@contextmanager
def _onednn() -> Iterator[None]:
    """float32 products by oneDNN: twice as fast as MKL on AMD (215 and 450 GFLOP/s on two Zen 5 cores).

    torch takes it where bf16 may be used inside; operands that are bf16 numbers lose nothing by that.
    """
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:  # before torch 2.9
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@dataclass
class Squares(Observer):
    """For every weight, sums of squares of one side of its products, and how many tokens were summed.

    Attributes:
        sums: canonical name -> float64 ``(matrices, columns)``, or rows.
        counts: canonical name -> int64 ``(matrices,)``.
    """

    sums: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    _totals: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    _squares: Latest = field(default_factory=Latest, repr=False)
    _damage: ClassVar[str]

    def add(self, name: str, matrix: int, matrices: int, squares: torch.Tensor, tokens: int) -> None:
        """``squares``, summed over ``tokens``, join those of the tensor's matrix."""
        if name not in self._totals:
            shape = (matrices, len(squares) + 1)
            self._totals[name] = torch.zeros(shape, dtype=torch.float64, device=squares.device)
        total = self._totals[name]
        total[matrix, :-1] += squares
        total[matrix, -1] += tokens

    def settle(self, label: str) -> None:
        """Move what was collected since the last time into ``sums`` and ``counts``.

        Raises:
            InputError: sums are not finite: damaged weights, named by the first tensor that shows it.
        """
        import numpy as np

        self._squares = Latest()
        for name, total in self._totals.items():
            table = total.cpu().numpy()
            if not np.isfinite(table).all():
                raise InputError(
                    f"{label}: {self._damage.format(name)}",
                    hint="Merge again in float32, or from an earlier checkpoint.",
                )
            self.sums[name] = self.sums.get(name, 0) + table[:, :-1]
            self.counts[name] = self.counts.get(name, 0) + table[:, -1].astype(np.int64)
        self._totals = {}


class Inputs(Squares):
    """What enters, as it is: sums of each input column."""

    _damage = "what enters {} is not finite; the weights before it are damaged"

    def saw(self, names: tuple[str, ...], matrix: int, matrices: int, inputs: torch.Tensor) -> None:
        sums = self._squares.of(inputs, lambda: inputs.float().sum(0))
        for name in names:
            self.add(name, matrix, matrices, sums, len(inputs))


@dataclass
class InputSquares(Squares):
    """What enters: sums of squares of each input column.

    Attributes:
        inputs: the sums without the squares, where they are wanted.
    """

    inputs: Inputs | None = None
    _damage = "what enters {} is not finite; the weights before it are damaged"

    def saw(self, names: tuple[str, ...], matrix: int, matrices: int, inputs: torch.Tensor) -> None:
        # A batch is summed in float32: 2e-7 of the sum, and ten times as fast as in float64.
        squares = self._squares.of(inputs, lambda: inputs.float().square().sum(0))
        for name in names:
            self.add(name, matrix, matrices, squares, len(inputs))
        if self.inputs is not None:
            self.inputs.saw(names, matrix, matrices, inputs)

    def settle(self, label: str) -> None:
        super().settle(label)
        if self.inputs is not None:
            self.inputs.settle(label)


@dataclass
class OutputGradients(Squares):
    """What comes back: sums of squares of the gradient at each output row.

    Attributes:
        joint: canonical name -> float64 ``(matrices, 2)``: over tokens, the gradient's squares times the
            input's (:func:`joint`), and the input's alone.
    """

    joint: dict[str, torch.Tensor] = field(default_factory=dict)
    _damage = "the gradient that comes back to {} is not finite; the weights behind it are damaged"

    def sent_back(
        self,
        names: tuple[str, ...],
        matrix: int,
        matrices: int,
        gradients: torch.Tensor,
        entered: torch.Tensor,
    ) -> None:
        squares = gradients.float().square()
        for name, part in zip(names, squares.chunk(len(names), dim=1), strict=True):
            self.add(name, matrix, matrices, part.sum(0), len(part))
            if name not in self.joint:
                self.joint[name] = torch.zeros((matrices, 2), dtype=torch.float64, device=part.device)
            self.joint[name][matrix] += joint(part.sum(1), entered)


@dataclass
class Routes(Observer):
    """Which experts each token is sent to: small integers in ascending order, not their weights.

    Attributes:
        layers: by layer, ``(tokens, chosen)``, tokens in the order of the text; dense layers are not there.
            The layers of an MTP head follow those of the trunk.
    """

    layers: dict[int, np.ndarray] = field(default_factory=dict)
    _batches: list[np.ndarray] = field(default_factory=list, repr=False)
    _settled: int = 0

    def chose(self, experts: torch.Tensor) -> None:
        import numpy as np

        self._batches.append(np.sort(experts.cpu().numpy().astype(np.int16), axis=1))

    def settle(self, label: str) -> None:
        import numpy as np

        if self._batches:
            self.layers[self._settled] = np.concatenate(self._batches)
        self._batches = []
        self._settled += 1


def joint(returned: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
    """Of a token's squared gradient and squared input: the sum of products, the sum of inputs."""
    entered = entered.double()
    return torch.stack([(returned.double() * entered).sum(), entered.sum()])
