"""The largest magnitude, whoever asks and in whatever order the rows pass by."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from codec_strategies import KINDS, make_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.errors import UsageProblem
from qexport.onepass.needs import Largest

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    matrices=st.integers(1, 4),
    height=st.integers(1, 9),
    columns=st.sampled_from([1, 3, 33]),
    step=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
)
@settings(deadline=None)
def test_is_torchs(
    kind: str, seed: int, matrices: int, height: int, columns: int, step: int, dtype: torch.dtype
) -> None:
    wide = torch.from_numpy(make_rows(kind, seed, matrices * height, 48))[:, :columns]
    rows = wide.to(dtype)
    survey = Largest((matrices, height, columns))
    for start in reversed(range(0, len(rows), step)):
        survey.observe(rows[start : start + step], start)
    known = torch.where(rows.isfinite(), rows.abs().float(), 0)  # float16 cannot hold them all
    expected = known.view(matrices, -1).amax(1).tolist()
    assert survey.table.tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_passed_over(dtype: torch.dtype) -> None:
    rows = torch.tensor([[float("nan"), -3.0, float("inf"), 2.0], [-float("inf"), 0.0, 0.5, -float("nan")]])
    survey = Largest((2, 1, 4))
    survey.observe(rows.to(dtype), 0)
    assert survey.table.tolist() == [3.0, 0.5]


def test_threads() -> None:
    rows = torch.from_numpy(make_rows("heavy", 3, 600, 64))
    survey = Largest((2, 300, 64))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda start: survey.observe(rows[start : start + 7], start), range(0, 600, 7)))
    assert survey.table.tolist() == rows.view(2, -1).abs().amax(1).tolist()


def test_refusals() -> None:
    with pytest.raises(UsageProblem, match="row 8 is beyond"):
        Largest((2, 4, 2)).observe(torch.zeros(3, 2), 6)
    with pytest.raises(UsageProblem, match=r"torch\.float64"):
        Largest((1, 2)).observe(torch.zeros(1, 2, dtype=torch.float64), 0)
