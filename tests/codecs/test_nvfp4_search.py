"""NVFP4 with searched scales: never worse than the usual ones, best of what it may choose from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_strategies import importance_of, make_rows, rows_of
from decoding import nvfp4
from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.codecs.nvfp4 import Nvfp4Rows, divisor, global_scale, quantize
from qexport.errors import UsageProblem

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TAME = ["normal", "heavy", "sparse", "constant", "one-sided", "two values", "near", "positive"]


def losses(rows: torch.Tensor, made: Nvfp4Rows, shared: np.float32, weights, divides: bool) -> np.ndarray:
    """Weighted squared error of each block, in float64."""
    error = nvfp4(made.packed, made.scales, shared, divides=divides).double() - rows.double()
    squares = error.square() * torch.from_numpy(np.float64(weights))
    return squares.unflatten(-1, (-1, 16)).sum(-1).numpy()


def scale_of(rows: torch.Tensor, divides: bool) -> np.float32:
    amax = float(rows.abs().max())
    return divisor(amax, rows.dtype) if divides else global_scale(amax)


@given(
    rows=rows_of(64, kinds=TAME),
    weights=importance_of(64),
    dtype=st.sampled_from(DTYPES),
    divides=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_never_worse(rows: np.ndarray, weights: np.ndarray | None, dtype: torch.dtype, divides: bool) -> None:
    source = torch.from_numpy(rows).to(dtype)
    weights = None if weights is None or (weights < 0).any() else weights
    shared = scale_of(source, divides)
    usual = quantize(source, shared, divides=divides)
    found = quantize(source, shared, search=True, importance=weights, divides=divides)
    flat = np.ones(64) if weights is None else weights
    before, after = (losses(source, made, shared, flat, divides) for made in (usual, found))
    assert (after <= before * (1 + 1e-5)).all()
    kept = found.scales == usual.scales
    assert np.array_equal(
        found.packed.reshape(*kept.shape, 8)[kept], usual.packed.reshape(*kept.shape, 8)[kept]
    )


@pytest.mark.parametrize("divides", [False, True])
def test_takes_the_best(divides: bool) -> None:
    """Against trying every scale: none within reach is better, and few out of reach."""
    source = torch.from_numpy(make_rows("heavy", 3, 16, 256)).to(torch.bfloat16)
    weights = np.square(np.random.default_rng(1).standard_normal(256)).astype(np.float32)
    shared = scale_of(source, divides)
    usual = quantize(source, shared, divides=divides).scales.astype(int)
    found = quantize(source, shared, search=True, importance=weights, divides=divides)
    mine = losses(source, found, shared, weights, divides)
    least = np.full(mine.shape, np.inf)
    for byte in range(1, 0x7F):
        scales = np.full(found.scales.shape, byte, np.uint8)
        steps = torch.from_numpy(scales).view(torch.float8_e4m3fn).float().numpy()
        step = steps / shared if divides else steps * shared
        levels = np.abs(source.float().numpy().reshape(*step.shape, 16)) / step[..., None]
        table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        nearest = table[np.abs(levels[..., None] - table).argmin(-1)]
        loss = (np.square((levels - nearest) * step[..., None]) * weights.reshape(-1, 16)).sum(-1)
        near = (byte >= usual - 4) & (byte <= usual + 6)
        assert (mine[near] <= loss[near] * (1 + 1e-4) + 1e-30).all()
        least = np.minimum(least, loss)
    assert mine.sum() < 1.01 * least.sum()


def test_what_it_gains() -> None:
    source = torch.from_numpy(make_rows("normal", 1, 64, 512)).to(torch.bfloat16)
    shared = scale_of(source, divides=False)
    weights = np.exp(np.random.default_rng(2).standard_normal(512) * 2).astype(np.float32)
    usual, flat = quantize(source, shared), quantize(source, shared, search=True)
    weighted = quantize(source, shared, search=True, importance=weights)
    one = np.ones(512)
    assert (
        losses(source, flat, shared, one, False).sum()
        < 0.75 * losses(source, usual, shared, one, False).sum()
    )
    by_weight = [losses(source, made, shared, weights, False).sum() for made in (usual, flat, weighted)]
    assert by_weight[2] < 0.9 * by_weight[1] < 0.75 * by_weight[0]


def test_four_over_six() -> None:
    """Two fives beside a six: scaled to 4, the fives are 10/3, which 3 is nearer to than 4 is to 5."""
    source = torch.tensor([[6.0, 4.5, 4.5, 4.5, *[1.5] * 12]])
    found = quantize(source, np.float32(1), search=True)
    assert found.scales.tolist() == [[0x3C]]  # 1.5 for the usual 1
    assert nvfp4(found.packed, found.scales, np.float32(1)).tolist() == source.tolist()
    assert quantize(source, np.float32(1)).scales.tolist() == [[0x38]]


@given(rows=rows_of(64), weights=importance_of(64), divides=st.booleans())
@settings(deadline=None)
def test_any_input_is_survived(rows: np.ndarray, weights: np.ndarray | None, divides: bool) -> None:
    source = torch.from_numpy(rows)
    shared = scale_of(source, divides)
    found = quantize(source, shared, search=True, importance=weights, divides=divides)
    assert found.bad == 0
    assert ((found.scales >= 1) & (found.scales <= 0x7E)).all()
    halves = [
        quantize(part, shared, search=True, importance=weights, divides=divides) for part in source.split(1)
    ]
    assert np.array_equal(np.concatenate([half.packed for half in halves]), found.packed)
    again = np.concatenate([half.scales for half in halves])
    assert np.array_equal(again, found.scales)


def test_what_is_not_finite_is_counted_and_weights_are_checked() -> None:
    rows = torch.ones(2, 64)
    rows[0, 3], rows[1, 40] = float("nan"), float("inf")
    assert quantize(rows, np.float32(1), search=True).bad == 2
    for wrong in (np.ones(32, np.float32), np.ones(64), np.ones((1, 64), np.float32)):
        with pytest.raises(UsageProblem, match="importance of 64 columns"):
            quantize(torch.ones(1, 64), np.float32(1), search=True, importance=wrong)
