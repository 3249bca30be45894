"""What an observer is told of matrix products, and what sums of squares it makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from qexport.errors import InputError
from qexport.evidence.observe import InputSquares, Observer, Products

GENERATOR = torch.Generator().manual_seed(5)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


class Notes(Observer):
    def __init__(self) -> None:
        self.told: list[tuple[tuple[str, ...], int, int, torch.Tensor]] = []

    def saw(self, names: tuple[str, ...], matrix: int, matrices: int, inputs: torch.Tensor) -> None:
        self.told.append((names, matrix, matrices, inputs.clone()))


def test_a_plain_matrix() -> None:
    notes, weight, x = Notes(), normal(6, 8), normal(2, 3, 8)
    products = Products(notes, wide=True)
    products.watch({"w": weight}, {"w": ("w.weight",)})
    with products:
        out = linear(x, weight)
    torch.testing.assert_close(out, x @ weight.t())
    ((names, matrix, matrices, inputs),) = notes.told
    assert (names, matrix, matrices) == (("w.weight",), 0, 1)
    assert torch.equal(inputs, x.view(6, 8))


def test_a_stack_is_told_apart_by_address() -> None:
    notes, stack = Notes(), normal(3, 4, 8)
    products = Products(notes, wide=True)
    products.watch({"experts": stack}, {"experts": ("gate", "up")})
    with products:
        linear(normal(2, 8), stack[2])
        linear(normal(0, 8), stack[0])  # an expert without tokens
        linear(normal(5, 8), stack[torch.tensor(1)])  # the index that transformers uses
    assert [told[:3] for told in notes.told] == [(("gate", "up"), 2, 3), (("gate", "up"), 1, 3)]


def test_other_weights_are_multiplied_and_not_told() -> None:
    notes = Notes()
    products = Products(notes, wide=True)
    mine, other, x = normal(4, 8), normal(4, 8), normal(2, 8)
    products.watch({"mine": mine}, {"mine": ("mine",)})
    with products:
        out = linear(x, other)
        linear(x, mine)
        products.watch({"other": other}, {"other": ("other",)})
        linear(x, mine)
        linear(x, other)
    torch.testing.assert_close(out, x @ other.t())
    assert [told[0] for told in notes.told] == [("mine",), ("other",)]
    linear(x, other)  # outside
    assert len(notes.told) == 2


@pytest.mark.parametrize("bias", [None, torch.float32, torch.bfloat16])
def test_bias_and_keywords(bias: torch.dtype | None) -> None:
    """transformers calls it by position, others by name."""
    weight, x = normal(4, 8), normal(2, 8)
    added = None if bias is None else normal(4).to(bias)
    expected = x @ weight.t() + (0 if added is None else added.float())
    with Products(Observer(), wide=True):
        torch.testing.assert_close(linear(x, weight, added), expected)
        torch.testing.assert_close(linear(input=x, weight=weight, bias=added), expected)


def test_arithmetic_of_mixed_precision() -> None:
    """bf16 operands; a float32 result unless a bf16 one is asked for; inputs told as they were."""
    weight, x = normal(64, 96).to(torch.bfloat16), normal(32, 96)
    rounded = x.to(torch.bfloat16).double() @ weight.double().t()
    for wide in (True, False):
        notes = Notes()
        products = Products(notes, wide=wide)
        products.watch({"w": weight}, {"w": ("w",)})
        with products:
            out = linear(x, weight)
        assert out.dtype == torch.float32
        assert torch.equal(notes.told[0][3], x)
        if wide:
            torch.testing.assert_close(out.double(), rounded, rtol=1e-5, atol=1e-5)
            assert (out - x @ weight.float().t()).abs().max() > 1e-3  # operands were rounded
            assert not torch.equal(out, out.to(torch.bfloat16).float())
        else:
            torch.testing.assert_close(out.double(), rounded, rtol=2**-7, atol=1e-3)
            assert torch.equal(out, out.to(torch.bfloat16).float())


def test_a_float32_weight_rounds_nothing() -> None:
    weight, x = normal(64, 96), normal(32, 96)
    exact = x.double() @ weight.double().t()
    for wide in (True, False):
        with Products(Observer(), wide=wide):
            torch.testing.assert_close(linear(x, weight).double(), exact, rtol=1e-5, atol=1e-5)


# --- sums ------------------------------------------------------------------------------------------------


def seen(*calls: tuple[Any, ...]) -> InputSquares:
    squares = InputSquares()
    for names, matrix, matrices, inputs in calls:
        squares.saw(names, matrix, matrices, inputs)
    squares.settle("layer 0")
    return squares


def test_sums_and_counts() -> None:
    squares = seen(
        (("a", "b"), 1, 3, torch.tensor([[1.0, 2.0], [3.0, 0.0]])),
        (("a", "b"), 2, 3, torch.tensor([[0.5, 0.0]])),
        (("a", "b"), 1, 3, torch.tensor([[0.0, -1.0]])),
    )
    for name in ("a", "b"):
        assert squares.sums[name].tolist() == [[0.0, 0.0], [10.0, 5.0], [0.25, 0.0]]
        assert squares.counts[name].tolist() == [0, 3, 1]


def test_layers_add_up() -> None:
    squares = seen((("a",), 0, 1, torch.tensor([[2.0]])))
    squares.saw(("a",), 0, 1, torch.tensor([[3.0]]))
    squares.saw(("b",), 0, 1, torch.tensor([[1.0]]))
    squares.settle("layer 0 again")
    assert squares.sums["a"].tolist() == [[13.0]]
    assert squares.counts["a"].tolist() == [2]
    assert squares.sums["b"].tolist() == [[1.0]]


def test_one_tensor_for_several_matrices_is_squared_once_and_right() -> None:
    """Query, key and value get the same tensor. One that was changed in place is another one."""
    squares, x = InputSquares(), normal(4, 8)
    first = x.double().square().sum(0).numpy()
    squares.saw(("q",), 0, 1, x)
    squares.saw(("k",), 0, 1, x)
    x += 1
    squares.saw(("v",), 0, 1, x)
    squares.saw(("half",), 0, 1, x[:2])
    squares.settle("layer 0")
    np.testing.assert_allclose(squares.sums["q"][0], first, rtol=1e-6)
    np.testing.assert_allclose(squares.sums["k"][0], first, rtol=1e-6)
    np.testing.assert_allclose(squares.sums["v"][0], x.double().square().sum(0).numpy(), rtol=1e-6)
    np.testing.assert_allclose(squares.sums["half"][0], x[:2].double().square().sum(0).numpy(), rtol=1e-6)


def test_freed_memory_that_is_used_again_is_not_mistaken() -> None:
    """A tensor freed at an address, and the next one allocated there, are different inputs."""
    squares, expected = InputSquares(), torch.zeros(256, dtype=torch.float64)
    for _ in range(50):
        x = normal(64, 256)
        expected += x.double().square().sum(0)
        squares.saw(("a",), 0, 1, x)
        del x
    squares.settle("layer 0")
    np.testing.assert_allclose(squares.sums["a"][0], expected.numpy(), rtol=1e-6)


def test_large_sums_keep_their_small_parts() -> None:
    """Batches are added in float64: a million tokens would lose later ones in float32."""
    squares = InputSquares()
    squares.saw(("a",), 0, 1, torch.full((1, 1), 2.0**13))  # its square is 2**26
    for _ in range(100):
        squares.saw(("a",), 0, 1, torch.ones(1, 1))
    squares.settle("layer 0")
    assert squares.sums["a"].tolist() == [[2.0**26 + 100]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_not_finite_is_named(value: float) -> None:
    """1e30 is finite, its square is not in float32: such activations are damage, too."""
    squares = InputSquares()
    squares.saw(("good",), 0, 1, torch.ones(2, 2))
    squares.saw(("mlp.down_proj.weight",), 1, 2, torch.tensor([[1.0, value]]))
    squares.saw(("later",), 0, 1, torch.tensor([[value]]))
    with pytest.raises(InputError, match=r"layer 3: what enters mlp\.down_proj\.weight is not finite"):
        squares.settle("layer 3")
