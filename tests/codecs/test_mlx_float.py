"""MLX's float modes: the bytes of mx.quantize, the values of mx.dequantize, layouts by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import runtime_oracles as oracles
import torch
from codec_strategies import make_rows, rows_of
from decoding import mlx_floats
from hypothesis import given, settings
from hypothesis import strategies as st
from make_golden_mlx import GOLDEN
from make_golden_runtimes import DTYPES, digest, rows_in

from qexport.codecs.mlx_float import FLOAT_MODES, FloatRows, quantize
from qexport.errors import UsageProblem

KNOWN = json.loads(GOLDEN.read_text())["hashes"]
modes = pytest.mark.parametrize("mode", FLOAT_MODES)


def decoded(made: FloatRows, mode: str) -> torch.Tensor:
    return mlx_floats(made.packed, made.scales, mode)


@modes
@pytest.mark.parametrize("dtype", DTYPES)
def test_golden(mode: str, dtype: torch.dtype) -> None:
    made = quantize(rows_in(dtype), mode)
    assert made.bad == 0
    key = f"{mode} {str(dtype).removeprefix('torch.')}"
    assert digest(made.packed.tobytes(), made.scales.tobytes()) == KNOWN[key]


@oracles.needs_mlx
@given(rows=rows_of(128), mode=st.sampled_from(list(FLOAT_MODES)), dtype=st.sampled_from(DTYPES))
@settings(max_examples=200, deadline=None)
def test_equals_mlx(rows: np.ndarray, mode: str, dtype: torch.dtype) -> None:
    source = oracles.finite(rows, dtype)
    # Below, powers of two leave what E8M0 and float32 products can say (the module's docstring).
    source = torch.where(source.abs() < 1e-30, torch.zeros_like(source), source)
    made, (packed, scales) = quantize(source, mode), oracles.mlx_float(source, mode)
    if made.bad:  # too large for an E4M3 scale: what MLX then writes is an accident of its argmin
        assert mode == "nvfp4"
        return
    assert np.array_equal(made.scales, scales)
    assert np.array_equal(made.packed, packed)
    theirs = oracles.mlx_float_dequantized((packed, scales), mode)
    if mode != "nvfp4" and theirs.isfinite().all():
        assert torch.equal(decoded(made, mode), theirs)


@oracles.needs_mlx
@modes
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_level_and_every_tie(mode: str, dtype: torch.dtype) -> None:
    """A group with its largest value at the top, and every sixteenth of it, of both signs."""
    group, top = FLOAT_MODES[mode].group, FLOAT_MODES[mode].top
    values = torch.linspace(-1, 1, 32 * (group - 1) + 1)[:-1].view(32, group - 1)
    rows = torch.cat([torch.ones(32, 1), values], 1) * top
    rows = torch.cat([rows, rows * 1.1, rows * 2.0**-7], 1).to(dtype)
    made, theirs = quantize(rows, mode), oracles.mlx_float(rows, mode)
    assert np.array_equal(made.scales, theirs[1])
    assert np.array_equal(made.packed, theirs[0])


def test_layout_by_hand() -> None:
    levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    row = torch.tensor([[*levels, *(-level for level in levels)] * 2])
    for mode, scale in (("mxfp4", 127), ("nvfp4", 0x38)):
        made = quantize(row, mode)
        codes = np.stack([made.packed & 15, made.packed >> 4], -1).reshape(-1)
        assert codes.tolist() == [*range(8), 0, *range(9, 16)] * 2  # zero has no sign
        assert (made.scales == scale).all()
        assert torch.equal(decoded(made, mode), row)
    made = quantize(torch.tensor([[448.0, -0.0, -1.0, 2.0**-9] + [0.0] * 28]), "mxfp8")
    assert made.packed[0, :4].tolist() == [0x7E, 0x80, 0xB8, 0x01]
    assert made.scales.item() == 127


def test_powers_of_two_are_the_next_one_up() -> None:
    rows = torch.zeros(4, 32)
    rows[:, 0] = torch.tensor([6.0, 6.000001, 12.0, 3.0])
    assert quantize(rows, "mxfp4").scales[:, 0].tolist() == [127, 128, 128, 126]


@modes
@given(rows=rows_of(64))
@settings(max_examples=50, deadline=None)
def test_error_is_at_most_half_a_level(mode: str, rows: np.ndarray) -> None:
    made = quantize(torch.from_numpy(rows), mode)
    if made.bad or not 1e-30 < np.abs(rows).max() < 1e38:
        return
    known = FLOAT_MODES[mode]
    wide = rows.reshape(-1, known.group).astype(np.float64)
    error = np.abs(decoded(made, mode).numpy().astype(np.float64).reshape(wide.shape) - wide).max(1)
    # The widest gap between levels is a third of the largest (4 to 6), or a fourteenth (416 to 448); a scale
    # is up to twice what is needed, or a step of E4M3 off, the smallest of which is 2**-9.
    gap = np.abs(wide).max(1) * (1 / 6 if known.bits == 4 else 1 / 14)
    slack = 1.0 if known.power_of_two else 1.2
    floor = 0.0 if known.power_of_two else 6 * 2.0**-9
    assert (error <= 2 * gap * slack + floor).all()


@modes
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_counted(mode: str, wrong: float) -> None:
    rows = torch.from_numpy(make_rows("normal", 2, 3, 128)).to(torch.bfloat16)
    rows[1, 70] = rows[2, 3] = wrong
    assert quantize(rows, mode).bad == 2


def test_too_large_for_nvfp4_is_counted() -> None:
    rows = torch.zeros(1, 32)
    rows[0, 0], rows[0, 16] = 2688, 2800
    assert quantize(rows, "nvfp4").bad == 1


@modes
def test_zeros_and_what_a_scale_cannot_hold(mode: str) -> None:
    made = quantize(torch.full((1, 32), 1e-12 if mode == "nvfp4" else 0.0), mode)
    assert not made.packed.any()
    assert made.scales.tolist()[0] == ([0, 0] if mode == "nvfp4" else [127])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageProblem, match="groups of 32"):
        quantize(torch.zeros(1, 48), "mxfp4")
    with pytest.raises(UsageProblem, match="no mode 'fp4'"):
        quantize(torch.zeros(1, 48), "fp4")
