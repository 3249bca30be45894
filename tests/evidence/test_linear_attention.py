"""Gated DeltaNet in pieces against transformers' own functions."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5 as theirs

from qexport.evidence.linear_attention import causal_convolution, gated_delta_rule, in_pieces

# Float32 in another order, relative to the largest value; the worst that was seen is 4e-7.
TOLERANCE = 3e-6


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert float((found - expected).abs().max() / expected.abs().max()) < TOLERANCE


def inputs(tokens: int, *, heads: int = 3, keys: int = 16, values: int = 24) -> dict[str, torch.Tensor]:
    torch.manual_seed(tokens)
    each = {"query": keys, "key": keys, "value": values}
    given = {name: torch.randn(2, tokens, heads, size) for name, size in each.items()}
    decays = -torch.rand(2, tokens, heads) * torch.tensor([0.01, 1.0, 30.0])  # one head forgets at once
    return given | {"g": decays, "beta": torch.rand(2, tokens, heads)}


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("normed", [True, False])
def test_the_delta_rule(tokens: int, normed: bool) -> None:
    given: dict[str, Any] = inputs(tokens)
    if not normed:
        given["key"] = torch.nn.functional.normalize(given["key"], dim=-1)  # else values grow without end
    given["initial_state"] = torch.randn(2, 3, 16, 24)
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": normed}
    expected, last = theirs.torch_chunk_gated_delta_rule(**given, **options)
    found, state = gated_delta_rule(**given, **options)
    same(found, expected)
    assert state is not None
    same(state, last)
    assert gated_delta_rule(**given)[1] is None


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("tokens", [1, 3, 64, 65, 130])
def test_the_convolution(tokens: int, biased: bool) -> None:
    torch.manual_seed(tokens)
    hidden, weight = torch.randn(2, tokens, 10).transpose(1, 2), torch.randn(10, 4)
    bias = torch.randn(10) if biased else None
    for activation in ("silu", None):
        same(
            causal_convolution(hidden, weight, bias, activation=activation),
            theirs.causal_conv1d_fn(hidden, weight, bias, activation=activation),
        )


def test_gradients() -> None:
    given = inputs(100)
    back = torch.randn(2, 100, 3, 24)
    gradients = []
    for rule in (theirs.torch_chunk_gated_delta_rule, gated_delta_rule):
        leaves = [values.clone().requires_grad_() for values in given.values()]
        out, _ = rule(**dict(zip(given, leaves, strict=True)), use_qk_l2norm_in_kernel=True)
        gradients.append(torch.autograd.grad(out, leaves, back))
    for expected, found in zip(*gradients, strict=True):
        same(found, expected)
    hidden, weight = torch.randn(2, 100, 10, requires_grad=True), torch.randn(10, 4)
    one, other = (
        torch.autograd.grad(f(hidden.transpose(1, 2), weight, activation="silu").square().sum(), hidden)[0]
        for f in (theirs.causal_conv1d_fn, causal_convolution)
    )
    same(other, one)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_the_familys_code_calls_them_for_a_while(family: str) -> None:
    code = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    names = ("torch_chunk_gated_delta_rule", "causal_conv1d_fn")
    before = [getattr(code, name) for name in names]
    model = type("Model", (), {"__module__": code.__name__})()
    with pytest.raises(KeyError), in_pieces(model):  # noqa: PT012
        assert [getattr(code, name) for name in names] == [gated_delta_rule, causal_convolution]
        raise KeyError
    assert [getattr(code, name) for name in names] == before


def test_a_family_without_linear_attention_is_as_it_was() -> None:
    from transformers.models.llama import modeling_llama

    before = dict(vars(modeling_llama))
    with in_pieces(type("Model", (), {"__module__": modeling_llama.__name__})()):
        assert vars(modeling_llama) == before
