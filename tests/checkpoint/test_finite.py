"""Counting NaN and infinity: every 16-bit pattern, and float32 against torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.checkpoint.finite import nonfinite_count
from qexport.errors import InputError


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_pattern_of_16_bits(dtype):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = patterns.view(dtype)
    assert nonfinite_count(values) == int((~torch.isfinite(values.float())).sum())
    for value in values[::257]:
        assert nonfinite_count(value) == int(not torch.isfinite(value.float()))


@settings(deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=50))
def test_float32_patterns(patterns):
    values = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    assert nonfinite_count(values) == int((~torch.isfinite(values)).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_large_and_strided(dtype):
    values = torch.randn(1000, 701).to(dtype)
    values[0, 0], values[-1, -1], values[500, 3] = float("nan"), float("-inf"), float("inf")
    before = values.clone()
    assert nonfinite_count(values) == 3
    assert nonfinite_count(values.T) == 3
    assert nonfinite_count(values[:, 1:]) == 2
    assert torch.equal(values.view(torch.uint8), before.view(torch.uint8))


def test_edges():
    assert nonfinite_count(torch.empty(0, 5, dtype=torch.bfloat16)) == 0
    assert nonfinite_count(torch.tensor(float("nan"))) == 1
    assert nonfinite_count(torch.tensor([torch.finfo(torch.float32).max, -0.0, 1e-45])) == 0
    with pytest.raises(InputError, match="float64"):
        nonfinite_count(torch.zeros(1, dtype=torch.float64))
