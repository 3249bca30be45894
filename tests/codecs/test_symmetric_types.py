"""Q6_K, Q3_K, Q4_0, Q5_0: blocks by hand, rare branches, all magnitudes. test_native.py has the rest."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from codec_strategies import IMPORTANCE_KINDS, make_importance, make_rows

from qexport.codecs import ggml
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.codecs.native import quantize_into
from qexport.codecs.scale_search import factors_around

needs_ggml = pytest.mark.skipif(not ggml.is_available(), reason="xllamacpp is not installed")

TYPES = ["Q6_K", "Q3_K", "Q4_0", "Q5_0"]


def pack(type_name: str, rows: torch.Tensor, importance: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """Packed rows and whether the kernel found them to be fine."""
    out = np.full((rows.shape[0], GGML_TYPES[type_name].row_bytes(rows.shape[1])), 0xAA, np.uint8)
    return out, quantize_into(type_name, rows, importance, out) == 0


def check(type_name: str, rows: torch.Tensor, importance: np.ndarray | None) -> None:
    expected = ggml.quantize_rows(type_name, rows.float().numpy(), importance)
    packed, fine = pack(type_name, rows, importance)
    assert fine == ggml.rows_are_valid(type_name, expected)
    if fine:
        assert np.array_equal(packed, expected)


@needs_ggml
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("weights", IMPORTANCE_KINDS)
def test_every_order_of_magnitude(type_name: str, weights: str) -> None:
    """Sums of squares overflow and underflow somewhere here; ggml's order of operations says where."""
    powers = 10.0 ** np.arange(-41, 38, dtype=np.float64)
    rows = (make_rows("normal", 8, 79, 512) * 50 * powers[:, None]).astype(np.float32)
    importance = make_importance(weights, 20, 512)
    for row in rows:
        check(type_name, torch.from_numpy(row[None]), importance)


@needs_ggml
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("weights", ["none", "squares"])
def test_a_million_values(type_name: str, weights: str) -> None:
    """What is rare happens here, such as a fifth round of Q3_K that still moves a level."""
    rows = torch.from_numpy(make_rows("normal", 7, 512, 2048))
    check(type_name, rows, make_importance(weights, 7, 2048))


@needs_ggml
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_first_of_two_largest_counts(type_name: str, sign: int) -> None:
    values = torch.linspace(-0.9, 0.9, 256)[None].clone()
    values[0, 5::16], values[0, 11::16] = sign * 1.0, -sign * 1.0
    check(type_name, values, None)
    check(type_name, values, np.ones(256, np.float32))
    if type_name == "Q4_0":
        assert pack(type_name, values, None)[0][0, :2].view(np.float16)[0] == -sign / 8


@pytest.mark.parametrize("weights", [None, np.ones(256, np.float32)])
def test_q6_k_by_hand(weights: np.ndarray | None) -> None:
    """Sub-block ``j`` has the scale ``8 (j + 1)``: the largest, 128, becomes -128, so ``d`` is -1."""
    levels = np.random.default_rng(0).integers(0, 64, (16, 16))
    levels[:, 3] = 0  # the largest magnitude is 32 scales below zero
    scales = 8 * np.arange(1, 17)
    values = (scales[:, None] * (levels - 32.0)).astype(np.float32).reshape(1, 256)
    packed, fine = pack("Q6_K", torch.from_numpy(values), weights)
    assert fine
    assert packed[0, 208:].view(np.float16)[0] == -1
    assert packed[0, 192:208].view(np.int8).tolist() == (-scales).tolist()
    flat = levels.ravel()
    assert packed[0, 5] == flat[5] % 16 + 16 * (flat[69] % 16)
    assert packed[0, 64 + 40] == flat[128 + 40] % 16 + 16 * (flat[128 + 104] % 16)
    upper = [flat[7] // 16, flat[39] // 16, flat[71] // 16, flat[103] // 16]
    assert packed[0, 128 + 7] == upper[0] + 4 * upper[1] + 16 * upper[2] + 64 * upper[3]
    assert np.array_equal(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q6_K), values)


@pytest.mark.parametrize("weights", [None, np.ones(256, np.float32)])
def test_q3_k_by_hand(weights: np.ndarray | None) -> None:
    """Sub-block ``j`` has the scale ``2 (j + 1)``: the largest, 32, becomes -32, so ``d`` is -1."""
    levels = np.random.default_rng(0).integers(0, 8, (16, 16))
    levels[:, 3] = 0
    scales = 2 * np.arange(1, 17)
    values = (scales[:, None] * (levels - 4.0)).astype(np.float32).reshape(1, 256)
    packed, fine = pack("Q3_K", torch.from_numpy(values), weights)
    assert fine
    assert packed[0, 108:].view(np.float16)[0] == -1
    codes, flat = 32 - scales, levels.ravel()
    assert packed[0, 96 + 3] == codes[3] % 16 + 16 * (codes[11] % 16)
    upper = [codes[1] // 16, codes[5] // 16, codes[9] // 16, codes[13] // 16]
    assert packed[0, 104 + 1] == upper[0] + 4 * upper[1] + 16 * upper[2] + 64 * upper[3]
    assert packed[0, 9] == sum(int(flat[9 + 32 * bit] > 3) << bit for bit in range(8))
    assert packed[0, 64 + 6] == sum(int(flat[134 + 32 * k] % 4) << 2 * k for k in range(4))
    assert np.array_equal(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q3_K), values)


@pytest.mark.parametrize("weights", [None, np.ones(32, np.float32)])
def test_q4_0_and_q5_0_by_hand(weights: np.ndarray | None) -> None:
    ramp = np.arange(32, dtype=np.float32)[None]
    packed, fine = pack("Q5_0", torch.from_numpy(-(ramp - 16) / 4), weights)
    assert fine
    assert packed[0, :2].view(np.float16)[0] == -0.25
    assert packed[0, 2:6].tolist() == [0, 0, 255, 255]  # fifth bits: levels are 0 to 31
    assert packed[0, 6:].tolist() == [17 * i for i in range(16)]
    packed, fine = pack("Q4_0", torch.from_numpy((8 - ramp // 2) * 4), weights)
    assert fine
    assert packed[0, :2].view(np.float16)[0] == -4
    assert packed[0, 2:].tolist() == [i // 2 + 16 * (8 + i // 2) for i in range(16)]


def test_zero_blocks() -> None:
    zeros = torch.zeros(2, 256)
    assert pack("Q4_0", zeros, None)[0].reshape(-1, 18)[5].tolist() == [0, 0x80] + [0x88] * 16
    assert pack("Q5_0", zeros, None)[0].reshape(-1, 22)[5].tolist() == [0, 0x80] + [255] * 4 + [0] * 16
    assert not pack("Q4_0", zeros, np.ones(256, np.float32))[0].any()


def test_places_around_the_top() -> None:
    factors = factors_around(8)
    assert factors.dtype == np.float32
    assert len(factors) == 19
    assert factors[0] == -8
    assert np.allclose(np.sort(factors[1:]), -8 + np.delete(np.arange(-9, 10), 9) / 10)
    assert factors[1] == np.float32(-(8 - 0.9))  # the lowest factor's magnitude is tried first


@pytest.mark.parametrize("type_name", TYPES)
def test_independent_decoder_sees_small_errors(type_name: str) -> None:
    """No value is further off than a step of its sub-block, searched scales included."""
    size, top = {"Q6_K": (16, 32), "Q3_K": (16, 4), "Q4_0": (32, 8), "Q5_0": (32, 16)}[type_name]
    rows = make_rows("normal", 9, 33, 512)
    for importance in (None, np.ones(512, np.float32)):
        packed, fine = pack(type_name, torch.from_numpy(rows), importance)
        assert fine
        decoded = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[type_name])
        step = np.abs(rows.reshape(-1, size)).max(1, keepdims=True) / top
        assert (np.abs(decoded - rows).reshape(-1, size) < 1.3 * step).all()


@pytest.mark.parametrize("type_name", TYPES)
def test_importance_lowers_the_weighted_error(type_name: str) -> None:
    rows, importance = make_rows("heavy", 5, 32, 512), make_importance("squares", 6, 512)
    kind = gguf.GGMLQuantizationType[type_name]
    errors = [
        (np.square(gguf.quants.dequantize(pack(type_name, torch.from_numpy(rows), w)[0], kind) - rows))
        for w in (None, importance)
    ]
    assert (errors[1] * importance).sum() < (errors[0] * importance).sum()
