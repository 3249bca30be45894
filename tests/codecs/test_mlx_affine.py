"""MLX's affine quantization: the bytes of mx.quantize, the values of mx.dequantize, whatever the rows."""

from __future__ import annotations

import base64
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import runtime_oracles as oracles
import torch
from codec_strategies import make_rows, rows_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from make_golden_runtimes import DTYPES, GOLDEN, digest, ramp, rows_in

from qexport.codecs.mlx_affine import BITS, GROUPS, AffineRows, dequantize, quantize
from qexport.errors import UsageProblem

KNOWN = json.loads(GOLDEN.read_text())
kinds_of_code = st.tuples(st.sampled_from(BITS), st.sampled_from(GROUPS), st.sampled_from(DTYPES))


def everything(made: AffineRows) -> bytes:
    return made.packed.tobytes() + oracles.raw(made.scales) + oracles.raw(made.biases)


def values(made: AffineRows, bits: int) -> torch.Tensor:
    return dequantize(made.packed, made.scales, made.biases, bits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), list(itertools.product(BITS, GROUPS)))
def test_golden(bits: int, group: int, dtype: torch.dtype) -> None:
    made = quantize(rows_in(dtype), bits, group)
    key = f"affine {bits} {group} {str(dtype).removeprefix('torch.')}"
    assert made.bad == 0
    assert made.scales.dtype == made.biases.dtype == dtype
    assert digest(everything(made)) == KNOWN["hashes"][key]
    assert digest(oracles.raw(values(made, bits))) == KNOWN["hashes"][f"{key} decoded"]


def test_golden_block() -> None:
    made = quantize(ramp(32), 6, 32)
    assert base64.b64encode(everything(made)).decode() == KNOWN["blocks"]["affine 6 32"]


@oracles.needs_mlx
@given(rows=rows_of(256), how=kinds_of_code)
@settings(max_examples=300, deadline=None)
def test_equals_mlx(rows: np.ndarray, how: tuple[int, int, torch.dtype]) -> None:
    bits, group, dtype = how
    source = oracles.finite(rows, dtype)
    theirs, made = oracles.mlx_affine(source, bits, group), quantize(source, bits, group)
    assert np.array_equal(made.packed, theirs[0])
    assert oracles.raw(made.scales) == oracles.raw(theirs[1])
    assert oracles.raw(made.biases) == oracles.raw(theirs[2])
    if not made.bad:  # the payload of a NaN is no one's promise
        decoded = oracles.mlx_dequantized(theirs, bits, group)
        assert oracles.raw(values(made, bits)) == oracles.raw(decoded)


@pytest.mark.parametrize("bits", BITS)
def test_layout_by_hand(bits: int) -> None:
    """Whole numbers up to the top code: the scale is -1, the bias the top, a code what is missing to it."""
    top = (1 << bits) - 1
    wanted = [(7 * i) % (top + 1) for i in range(256)]
    rows = torch.tensor([wanted, wanted[::-1]], dtype=torch.float32)
    rows[:, ::32], rows[:, 1::32] = 0, top
    made = quantize(rows, bits, 32)
    assert made.packed.shape == (2, 32 * bits)
    assert made.scales.eq(-1).all()
    assert made.biases.eq(top).all()
    for row, packed in zip(rows, made.packed, strict=True):
        stream = int.from_bytes(packed.tobytes(), "little")
        assert [stream >> (i * bits) & top for i in range(256)] == [top - int(value) for value in row]
    assert torch.equal(values(made, bits), rows)


def test_negative_end_is_the_bias() -> None:
    rows = torch.full((1, 32), 1.0)
    rows[0, :3] = torch.tensor([-2.0, 0.0, 0.5])
    made = quantize(rows, 2, 32)  # a step is 1: ties go to the even code
    assert (made.scales.item(), made.biases.item()) == (1.0, -2.0)
    assert made.packed[0, 0] == 0b11_10_10_00
    assert values(made, 2)[0, :4].tolist() == [-2.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros(dtype: torch.dtype) -> None:
    for rows in (torch.zeros(2, 64, dtype=dtype), -torch.zeros(2, 64, dtype=dtype)):
        made = quantize(rows, 4, 64)
        assert made.bad == 0
        assert not made.packed.any()
        assert not values(made, 4).any()
    assert quantize(rows[:0], 4, 64).packed.shape == (0, 32)


@given(value=st.floats(width=16, allow_nan=False, allow_infinity=False), how=kinds_of_code)
@settings(deadline=None)
def test_constants_come_back(value: float, how: tuple[int, int, torch.dtype]) -> None:
    bits, group, dtype = how
    rows = torch.full((1, 128), value).to(dtype)
    made = quantize(rows, bits, group)
    assert made.bad == 0
    if abs(value) >= 1e-7:
        assert torch.equal(values(made, bits), rows)
    else:
        assert values(made, bits).abs().max() <= 2e-7


@given(rows=rows_of(128), bits=st.sampled_from(BITS), group=st.sampled_from(GROUPS))
@settings(deadline=None)
def test_error_is_at_most_a_step(rows: np.ndarray, bits: int, group: int) -> None:
    """Half a step of rounding, or what the group lost when its end became a whole number of steps."""
    assume(np.abs(rows[np.isfinite(rows)]).max(initial=0) < 1e38)  # all steps of a group fit float32
    made = quantize(torch.from_numpy(rows), bits, group)
    if made.bad:
        return
    wide = rows.astype(np.float64).reshape(-1, group)
    step = np.maximum((wide.max(1) - wide.min(1)) / ((1 << bits) - 1), 1e-7)
    error = np.abs(values(made, bits).numpy().astype(np.float64).reshape(-1, group) - wide).max(1)
    assert (error <= 1.001 * step + 1e-6 * np.abs(wide).max(1)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_counted(wrong: float, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(make_rows("normal", 2, 3, 256)).to(dtype)
    clean = quantize(rows, 4, 64)
    rows[1, 70] = rows[1, 90] = rows[2, 255] = wrong
    made = quantize(rows, 4, 64)
    assert (clean.bad, made.bad) == (0, 2)
    untouched = np.ones((3, 4), bool)
    untouched[1, 1] = untouched[2, 3] = False
    assert np.array_equal(made.packed.reshape(3, 4, 32)[untouched], clean.packed.reshape(3, 4, 32)[untouched])
    assert torch.equal(made.scales[untouched], clean.scales[untouched])


def test_nothing_but_infinity_is_counted() -> None:
    rows = torch.full((2, 64), float("inf"))
    assert quantize(rows, 4, 32).bad == quantize(-rows, 4, 32).bad == 4


def test_too_wide_a_range_is_counted() -> None:
    rows = torch.zeros(1, 64)
    rows[0, 0], rows[0, 1], rows[0, 32] = 3e38, -3e38, 3e38
    assert quantize(rows, 8, 32).bad == 1


def test_split_and_threads_do_not_matter() -> None:
    rows = torch.from_numpy(make_rows("heavy", 1, 64, 512)).to(torch.bfloat16)
    before, whole = rows.clone(), quantize(rows, 6, 64)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: quantize(rows[start : start + 5], 6, 64), range(0, 64, 5)))
    assert np.array_equal(np.concatenate([part.packed for part in parts]), whole.packed)
    assert torch.equal(torch.cat([part.scales for part in parts]), whole.scales)
    assert torch.equal(torch.cat([part.biases for part in parts]), whole.biases)
    assert torch.equal(rows, before)
    assert everything(quantize(rows.T.contiguous().T, 6, 64)) == everything(whole)


def test_rows_at_odd_addresses() -> None:
    memory = np.zeros(64 * 2 + 1, np.uint8)
    rows = torch.randn(1, 64).to(torch.bfloat16)
    memory[1:] = rows.view(torch.uint8).numpy()[0]
    odd = torch.frombuffer(memory[1:], dtype=torch.bfloat16).reshape(1, 64)
    assert everything(quantize(odd, 3, 32)) == everything(quantize(rows, 3, 32))


@pytest.mark.parametrize(("bits", "group"), [(7, 64), (4, 16), (1, 32), (4, 96)])
def test_unknown_kinds_are_refused(bits: int, group: int) -> None:
    with pytest.raises(UsageProblem, match=rf"{bits} bits in groups of {group}"):
        quantize(torch.zeros(1, 384), bits, group)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageProblem, match="groups of 64"):
        quantize(torch.zeros(1, 96), 4, 64)
    for rows in (torch.zeros(1, 64, dtype=torch.int32), torch.zeros(64)):
        with pytest.raises(UsageProblem, match="cannot be quantized"):
            quantize(rows, 4, 64)
    made = quantize(torch.zeros(2, 128), 4, 64)
    for packed, scales, biases in [
        (made.packed[:1], made.scales, made.biases),
        (made.packed, made.scales, made.biases.half()),
        (made.packed, made.scales.double(), made.biases.double()),
        (made.packed.view(np.int8), made.scales, made.biases),
        (made.packed, made.scales[:, :0], made.biases[:, :0]),
    ]:
        with pytest.raises(UsageProblem):
            dequantize(packed, scales, biases, 4)
