"""FP8 with one scale for a matrix: ModelOpt's scales and codes, in runs of any size."""

from __future__ import annotations

import json

import numpy as np
import pytest
import runtime_oracles as oracles
import torch
from codec_strategies import KINDS, make_rows
from encoding import Encoder, largest_of
from hypothesis import given, settings
from hypothesis import strategies as st
from make_golden_runtimes import DTYPES, GOLDEN, digest, rows_in

from qexport.codecs.contract import Fp8Matrix
from qexport.errors import InputError

KNOWN = json.loads(GOLDEN.read_text())["hashes"]


def encode(rows: torch.Tensor, matrices: int = 1, step: int = 1 << 30) -> tuple[np.ndarray, np.ndarray]:
    encoder = Encoder(Fp8Matrix(), None, len(rows) // matrices, largest_of(rows, matrices))
    runs = [encoder.encode(rows[start : start + step], start) for start in range(0, len(rows), step)]
    return np.concatenate([codes for codes, _, _ in runs]), np.concatenate([scales for _, scales, _ in runs])


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(DTYPES))
@settings(deadline=None)
def test_formula(kind: str, seed: int, dtype: torch.dtype) -> None:
    rows = oracles.finite(make_rows(kind, seed, 3, 64), dtype)
    codes, scales = encode(rows)
    scale = rows.abs().amax().float() / 448
    scale = scale if scale >= torch.finfo(torch.float32).tiny else torch.tensor(1.0)
    assert scales.tolist() == [scale.item()]
    expected = (rows / scale).to(torch.float8_e4m3fn)  # a quotient in the dtype of the rows
    assert np.array_equal(codes, expected.view(torch.uint8).numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_runs_and_matrices(dtype: torch.dtype) -> None:
    rows = torch.from_numpy(make_rows("heavy", 5, 12, 64)).to(dtype)
    apart = [encode(rows[start : start + 4]) for start in (0, 4, 8)]
    for step in (1, 3, 5, 8, 12):
        codes, scales = encode(rows, 3, step)
        assert np.array_equal(codes, np.concatenate([one for one, _ in apart]))
        assert np.array_equal(scales, np.concatenate([one for _, one in apart]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_golden(dtype: torch.dtype) -> None:
    codes, scales = encode(rows_in(dtype))
    key = f"fp8 tensor {str(dtype).removeprefix('torch.')}"
    assert digest(codes.tobytes(), scales.tobytes()) == KNOWN[key]


@oracles.needs_modelopt
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "heavy"])  # ModelOpt makes NaN of a matrix of zeros
def test_equals_modelopt(kind: str, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(make_rows(kind, 1, 96, 128)).to(dtype)
    codes, scale = oracles.modelopt_fp8(rows)
    mine = encode(rows)
    assert np.array_equal(mine[0], codes)
    assert mine[1].tolist() == [scale]


def test_zeros_have_the_scale_one() -> None:
    codes, scales = encode(torch.tensor([[0.0, -0.0], [2.0, -1.0]]), 2)
    assert scales.tolist() == [1.0, np.float32(2) / np.float32(448)]
    assert codes.tolist() == [[0, 0x80], [0x7E, 0xF6]]


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf")])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    rows = torch.ones(4, 32)
    rows[2, 3] = wrong
    with pytest.raises(InputError, match="rows 0 to 3"):
        encode(rows)
