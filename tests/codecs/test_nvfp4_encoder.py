"""The NVFP4 encoder: three streams, the same for every split into runs, one global scale a matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_strategies import make_rows
from encoding import Encoder, largest_of

from qexport.codecs.contract import Nvfp4
from qexport.codecs.nvfp4 import divisor, global_scale, quantize
from qexport.errors import InputError

EXPERTS, ROWS, COLUMNS = 3, 5, 64


@pytest.fixture
def rows() -> torch.Tensor:
    made = torch.from_numpy(make_rows("heavy", 4, EXPERTS * ROWS, COLUMNS)).to(torch.bfloat16)
    made[ROWS : 2 * ROWS] *= 16
    return made


def encode(encoder: Encoder, rows: torch.Tensor, run: int) -> list[np.ndarray]:
    parts = [encoder.encode(rows[start : start + run], start) for start in range(0, len(rows), run)]
    return [np.concatenate(stream) for stream in zip(*parts, strict=True)]


@pytest.mark.parametrize("divides", [False, True])
@pytest.mark.parametrize("run", [1, 3, 5, 7, 100])
def test_stack_of_experts(rows: torch.Tensor, run: int, divides: bool) -> None:
    encoder = Encoder(Nvfp4(divides), None, ROWS, largest_of(rows, EXPERTS))
    packed, scales, shared = encode(encoder, rows, run)
    for expert in range(EXPERTS):
        mine = slice(expert * ROWS, (expert + 1) * ROWS)
        amax = float(rows[mine].abs().max())
        one = divisor(amax, rows.dtype) if divides else global_scale(amax)
        alone = quantize(rows[mine], one, divides=divides)
        assert shared[expert] == one
        assert np.array_equal(packed[mine], alone.packed)
        assert np.array_equal(scales[mine], alone.scales)
    assert shared.shape == (EXPERTS,)
    assert shared.dtype == np.float32
    assert len(set(shared.tolist())) == EXPERTS


def test_fused_matrices_share_a_scale(rows: torch.Tensor) -> None:
    gate, up = rows[:4], rows[4:11]  # of different heights, as q and k are
    both = Encoder(Nvfp4(), largest=largest_of(rows[:11]))
    first, second = (encode(both, matrix, 2)[2] for matrix in (gate, up))
    assert first.tolist() == second.tolist() == [global_scale(float(rows[:11].abs().max()))]


@pytest.mark.parametrize("divides", [False, True])
def test_importance_of_experts(rows: torch.Tensor, divides: bool) -> None:
    largest, searched = largest_of(rows, EXPERTS), Nvfp4(divides, "mse")
    weights = np.square(np.random.default_rng(0).standard_normal((EXPERTS, COLUMNS))).astype(np.float32) ** 4
    found = encode(Encoder(searched, weights, ROWS, largest), rows, 4)
    for expert in range(EXPERTS):
        mine = slice(expert * ROWS, (expert + 1) * ROWS)
        alone = quantize(
            rows[mine], found[2][expert], search=True, importance=weights[expert], divides=divides
        )
        assert np.array_equal(found[0][mine], alone.packed)
        assert np.array_equal(found[1][mine], alone.scales)
    for_all = encode(Encoder(searched, weights[:1], ROWS, largest), rows, 4)
    assert np.array_equal(for_all[1][:ROWS], found[1][:ROWS])
    assert not np.array_equal(for_all[1], found[1])
    assert not np.array_equal(encode(Encoder(searched, None, ROWS, largest), rows, 4)[1], found[1])


def test_refusals(rows: torch.Tensor) -> None:
    rows[7, 3] = float("nan")
    with pytest.raises(InputError, match="NVFP4 cannot store"):
        Encoder(Nvfp4(), None, ROWS, largest_of(rows, EXPERTS)).encode(rows, 0)
