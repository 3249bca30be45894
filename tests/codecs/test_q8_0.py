"""Q8_0 equals ggml's reference encoder bit for bit, whatever the rows."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
import torch
from codec_strategies import make_rows, rows_of
from encoding import make_encoder
from hypothesis import given, settings

from qexport.codecs import ggml
from qexport.codecs.native import quantize_into
from qexport.errors import InputError, UsageProblem

needs_ggml = pytest.mark.skipif(not ggml.is_available(), reason="xllamacpp is not installed")


def pack(rows: torch.Tensor) -> np.ndarray:
    out = np.full((rows.shape[0], rows.shape[1] // 32 * 34), 0xAA, np.uint8)
    quantize_into("Q8_0", rows, None, out)
    return out


def test_block_by_hand() -> None:
    values = torch.zeros(1, 32)
    values[0, :8] = torch.tensor(
        [254.0, -254.0, 1.0, -1.0, 0.99, 3.0, 5.0, -7.0]
    )  # scale 2: ties go outwards
    packed = pack(values)
    assert packed[0, :2].view(np.float16)[0] == 2.0
    assert packed[0, 2:10].view(np.int8).tolist() == [127, -127, 1, -1, 0, 2, 3, -4]
    assert not packed[0, 10:].any()


def test_zero_block() -> None:
    assert not pack(torch.zeros(2, 64, dtype=torch.bfloat16)).any()
    assert not pack(-torch.zeros(1, 32)).any()


def test_almost_half_rounds_down() -> None:
    values = torch.zeros(1, 32)
    values[0, 0], values[0, 1], values[0, 2] = 127.0, 0.49999997, -0.49999997
    assert pack(values)[0, 2:5].view(np.int8).tolist() == [127, 0, 0]


GOLDEN_BLOCK = "0Re3vsTK0dfe5Ovx+P4FCxEYHiUrMjg/RUtSWF9lbHJ5fw=="


def test_golden_block() -> None:
    """Written by ggml's quantize_row_q8_0_ref; test_encoders.py has the hashes of whole rows."""
    ramp = torch.from_numpy((np.arange(32, dtype=np.float32) - 11.3) * np.float32(0.0123))[None]
    assert base64.b64encode(pack(ramp).tobytes()).decode() == GOLDEN_BLOCK


@needs_ggml
@given(rows=rows_of(128))
@settings(max_examples=300, deadline=None)
def test_equals_ggml(rows: np.ndarray) -> None:
    assert np.array_equal(pack(torch.from_numpy(rows)), ggml.quantize_rows("Q8_0", rows))
    narrow = torch.from_numpy(rows).to(torch.bfloat16)
    if narrow.isfinite().all():
        assert np.array_equal(pack(narrow), ggml.quantize_rows("Q8_0", narrow.float().numpy()))


@needs_ggml
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["normal", "heavy", "ties", "sparse"])
def test_encoder_equals_ggml(dtype: torch.dtype, kind: str) -> None:
    rows = torch.from_numpy(make_rows(kind, 3, 130, 4096)).to(dtype)  # more than one chunk
    packed = make_encoder("Q8_0").encode(rows, 0)
    assert np.array_equal(packed, ggml.quantize_rows("Q8_0", rows.float().numpy()))


@given(rows=rows_of(64, kinds=["normal", "heavy", "sparse", "constant", "tiny"]))
@settings(max_examples=100, deadline=None)
def test_independent_decoder_sees_half_a_step(rows: np.ndarray) -> None:
    decoded = gguf.quants.dequantize(pack(torch.from_numpy(rows)), gguf.GGMLQuantizationType.Q8_0)
    step = np.abs(rows.reshape(-1, 32)).max(1, keepdims=True).astype(np.float64) / 127
    error = np.abs(decoded.astype(np.float64) - rows).reshape(-1, 32)
    # half a step, the float16 rounding of the scale (2**-11 of it, at least 2**-25) times up to 127
    assert (error <= 0.5001 * step + 127 * np.maximum(step * 2**-11, 2.0**-25)).all()


def test_what_the_type_cannot_hold_is_refused() -> None:
    encoder = make_encoder("Q8_0")
    for bad in (float("nan"), float("inf"), 1e8):
        rows = torch.ones(3, 64)
        rows[1, 40] = bad
        with pytest.raises(InputError, match=r"rows 10 to 12 .* Q8_0"):
            encoder.encode(rows, 10)
    assert quantize_into("Q8_0", torch.full((1, 64), 1e8), None, np.empty((1, 68), np.uint8)) > 0


def test_split_and_threads_do_not_matter() -> None:
    rows = torch.from_numpy(make_rows("heavy", 1, 64, 512)).to(torch.bfloat16)
    encoder = make_encoder("Q8_0")
    whole = encoder.encode(rows, 0)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: encoder.encode(rows[start : start + 5], start), range(0, 64, 5)))
    assert np.array_equal(np.concatenate(parts), whole)
    assert encoder.encode(rows[:0], 0).shape == (0, 544)


def test_rows_at_odd_addresses() -> None:
    raw = np.zeros(64 * 2 + 1, np.uint8)
    values = torch.randn(1, 64).to(torch.bfloat16)
    raw[1:] = values.view(torch.uint8).numpy()[0]
    odd = torch.frombuffer(raw[1:], dtype=torch.bfloat16).reshape(1, 64)
    assert np.array_equal(pack(odd), pack(values))


def test_wrong_output_is_refused() -> None:
    with pytest.raises(UsageProblem):
        quantize_into("Q8_0", torch.zeros(1, 64), None, np.empty((1, 64), np.uint8))
