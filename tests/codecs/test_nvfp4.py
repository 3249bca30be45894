"""NVFP4: ModelOpt's bytes, compressed-tensors' where the two agree, and the values that readers find."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import runtime_oracles as oracles
import torch
from codec_strategies import make_rows, rows_of
from decoding import nvfp4
from hypothesis import given, settings
from hypothesis import strategies as st
from make_golden_runtimes import DTYPES, GOLDEN, SHARED, digest, ramp, rows_in

from qexport.codecs.nvfp4 import Nvfp4Rows, divisor, global_scale, quantize
from qexport.errors import UsageProblem

KNOWN = json.loads(GOLDEN.read_text())
ONE = np.float32(1)
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def own_scale(rows: torch.Tensor) -> np.float32:
    return global_scale(float(rows.abs().max()))


def everything(made: Nvfp4Rows) -> bytes:
    return made.packed.tobytes() + made.scales.tobytes()


def codes(made: Nvfp4Rows) -> list[int]:
    return np.stack([made.packed & 15, made.packed >> 4], -1).ravel().tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_golden(dtype: torch.dtype) -> None:
    rows, key = rows_in(dtype), f"nvfp4 {str(dtype).removeprefix('torch.')}"
    shared = own_scale(rows)
    made = quantize(rows, shared)
    assert made.bad == 0
    assert digest(shared.tobytes(), everything(made)) == KNOWN["hashes"][key]
    decoded = nvfp4(made.packed, made.scales, shared) + 0  # ModelOpt reads a negative zero as zero
    assert digest(oracles.raw(decoded)) == KNOWN["hashes"][f"{key} decoded"]


def test_golden_of_compressed_tensors() -> None:
    made = quantize(rows_in(torch.float32)[:255], SHARED)
    assert digest(everything(made)) == KNOWN["hashes"]["nvfp4 compressed-tensors"]
    decoded = nvfp4(made.packed, made.scales, SHARED)
    assert digest(oracles.raw(decoded)) == KNOWN["hashes"]["nvfp4 compressed-tensors decoded"]


def test_golden_block() -> None:
    made = quantize(ramp(32), SHARED)
    assert base64.b64encode(everything(made)).decode() == KNOWN["blocks"]["nvfp4"]


@oracles.needs_modelopt
@given(rows=rows_of(256), dtype=st.sampled_from(DTYPES), room=st.sampled_from([1.0, 3.7, 1e4]))
@settings(max_examples=300, deadline=None)
def test_equals_modelopt(rows: np.ndarray, dtype: torch.dtype, room: float) -> None:
    source = oracles.finite(rows, dtype)
    amax = float(source.abs().max())
    shared = global_scale(min(amax * room, 3e38))  # fused with a matrix of larger values
    if amax > 1e-30:
        assert oracles.modelopt_global_scale(source) == global_scale(amax)
    theirs, made = oracles.modelopt_nvfp4(source, shared), quantize(source, shared)
    assert np.array_equal(made.packed, theirs[0])
    assert np.array_equal(made.scales, theirs[1])
    decoded = oracles.modelopt_dequantized(theirs, shared)
    assert torch.equal(nvfp4(made.packed, made.scales, shared), decoded)


@oracles.needs_compressed_tensors
@given(rows=rows_of(256))
@settings(max_examples=150, deadline=None)
def test_equals_compressed_tensors_with_a_power_of_two(rows: np.ndarray) -> None:
    source = torch.from_numpy(rows)
    power = np.float32(2.0 ** np.ceil(np.log2(own_scale(source))))
    theirs, made = oracles.ct_nvfp4(source, power), quantize(source, power)
    # Scales of zero are 1 here and 2**-3 there; others below 2**-9 differ as well.
    tops = np.abs(rows.reshape(len(rows), -1, 16)).max(-1).astype(np.float64)
    usual = tops / 6 / power >= 2.0**-9
    assert np.array_equal(made.scales[usual], theirs[1][usual])
    mine, other = (packed.reshape(*usual.shape, 8)[usual] for packed in (made.packed, theirs[0]))
    assert np.array_equal(mine, other)
    if 2.0**-126 < 1 / power < np.inf:
        decoded = oracles.ct_nvfp4_dequantized((made.packed, made.scales), power)
        assert oracles.raw(nvfp4(made.packed, made.scales, power)) == oracles.raw(decoded)


@oracles.needs_compressed_tensors
@given(rows=rows_of(256), dtype=st.sampled_from(DTYPES), room=st.sampled_from([1.0, 3.7, 1e4]))
@settings(max_examples=300, deadline=None)
def test_dividing_equals_compressed_tensors(rows: np.ndarray, dtype: torch.dtype, room: float) -> None:
    source = oracles.finite(rows, dtype)
    amax = float(source.abs().max())
    own, theirs = divisor(amax, dtype), oracles.ct_nvfp4_divisor(source)
    assert own == theirs or (dtype == torch.float16 and amax < 0.05 and theirs == 1)
    shared = divisor(float(source.double().abs().max().clamp(max=3e38 / room) * room), torch.float32)
    if not 2.0**-126 <= shared < np.inf:
        return
    packed, scales = oracles.ct_nvfp4_divided(source, shared)
    made = quantize(source, shared, divides=True)
    assert np.array_equal(made.scales, scales)
    assert np.array_equal(made.packed, packed)


@given(rows=rows_of(64), dtype=st.sampled_from(DTYPES))
@settings(deadline=None)
def test_dividing_by_formula(rows: np.ndarray, dtype: torch.dtype) -> None:
    """The arithmetic of compressed-tensors in torch: each operation in the dtype that torch gives it."""
    source = oracles.finite(rows, dtype)
    shared = divisor(float(source.abs().max()), dtype)
    blocks = source.unflatten(-1, (-1, 16))
    wide = (blocks.abs().amax(-1) / 6 * torch.tensor([shared])).clamp(max=448).to(torch.float8_e4m3fn)
    scales = wide.view(torch.uint8).numpy()
    scales = np.where(scales == 0, np.uint8(0x20), scales)
    made = quantize(source, shared, divides=True)
    assert np.array_equal(made.scales, scales)
    decoded = nvfp4(made.packed, made.scales, shared, divides=True).unflatten(-1, (-1, 16))
    steps = torch.from_numpy(scales).view(torch.float8_e4m3fn).float() / torch.tensor([shared])
    levels = (blocks / steps[..., None]).abs().clamp(max=6)
    nearest = torch.tensor(LEVELS)[(levels[..., None] - torch.tensor(LEVELS)).abs().argmin(-1)]
    off = ((decoded.abs() / steps[..., None]) - nearest).abs()
    ties = torch.isin(levels, torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]))
    assert not (off > 1e-6)[~ties].any()


def test_divisor() -> None:
    assert divisor(6 * 448, torch.bfloat16) == 1
    assert divisor(0.0, torch.float32) == divisor(1e-36, torch.bfloat16) == 1  # infinite
    assert divisor(0.53125, torch.bfloat16) == 5056  # 5059.8 to eight bits
    assert divisor(0.01, torch.float16) == pytest.approx(2688 / 0.01)  # beyond float16
    with pytest.raises(UsageProblem, match="largest magnitude"):
        divisor(float("inf"), torch.bfloat16)


def test_block_by_hand() -> None:
    rows = torch.tensor([[6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.1, -0.0, -6, 0.26, -0.74, -4.9, 2.6, 0]])
    made = quantize(rows, ONE)
    assert made.scales.tolist() == [[0x38]]  # E4M3 of 1
    expected = [7, 0, 2, 2, 4, 4, 6, 6, 8, 0, 15, 1, 9, 14, 5, 0]
    assert codes(made) == expected
    assert made.packed[0, :2].tolist() == [0x07, 0x22]  # the even column is the low half
    signed = [*LEVELS, *(-level for level in LEVELS)]
    assert nvfp4(made.packed, made.scales, ONE).tolist() == [[signed[code] for code in expected]]


def test_zeros_and_limits_of_the_scale() -> None:
    rows = torch.zeros(4, 16)
    rows[1, 0], rows[2, 0], rows[3, 0] = 1e-9, 6 * 448, 1e5
    made = quantize(rows, ONE)
    assert made.scales.ravel().tolist() == [0x38, 0x01, 0x7E, 0x7E]  # 1, 2**-9, 448, 448
    assert codes(made)[::16] == [0, 0, 7, 7]  # the last is cut off
    assert made.bad == 0
    assert quantize(rows[:0], ONE).packed.shape == (0, 8)


def test_global_scale() -> None:
    assert global_scale(6 * 448) == 1
    assert global_scale(1.0) == np.float32(1) / np.float32(2688)
    assert global_scale(0.0) == global_scale(1e-36) == 1
    assert global_scale(3e38).dtype == np.float32
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageProblem, match="largest magnitude"):
            global_scale(wrong)


@given(rows=rows_of(64))
@settings(deadline=None)
def test_error_is_bounded(rows: np.ndarray) -> None:
    """The widest step is from 4 to 6; a small scale is coarse, and its largest values are cut off."""
    source = torch.from_numpy(rows)
    shared = own_scale(source)
    made = quantize(source, shared)
    scales = torch.from_numpy(made.scales).view(torch.float8_e4m3fn).double().numpy()[..., None]
    wide = rows.astype(np.float64).reshape(len(rows), -1, 16)
    decoded = nvfp4(made.packed, made.scales, shared).double().numpy().reshape(wide.shape)
    bound = np.where(scales >= 2.0**-6, 1.001, 3.001) * scales * float(shared)
    assert (np.abs(decoded - wide) <= bound).all()
    assert ((decoded == 0) | (np.sign(decoded) == np.sign(wide))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_counted(wrong: float, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(make_rows("normal", 2, 2, 64)).to(dtype)
    shared = own_scale(rows)
    clean = quantize(rows, shared)
    rows[0, 17] = rows[0, 18] = rows[1, 63] = wrong
    made = quantize(rows, shared)
    assert (clean.bad, made.bad) == (0, 2)
    untouched = np.ones((2, 4), bool)
    untouched[0, 1] = untouched[1, 3] = False
    assert np.array_equal(made.scales[untouched], clean.scales[untouched])
    assert np.array_equal(made.packed.reshape(2, 4, 8)[untouched], clean.packed.reshape(2, 4, 8)[untouched])


def test_split_and_threads_do_not_matter() -> None:
    rows = torch.from_numpy(make_rows("heavy", 1, 64, 512)).to(torch.bfloat16)
    before, shared = rows.clone(), own_scale(rows)
    whole = quantize(rows, shared)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: quantize(rows[start : start + 5], shared), range(0, 64, 5)))
    assert np.array_equal(np.concatenate([part.packed for part in parts]), whole.packed)
    assert np.array_equal(np.concatenate([part.scales for part in parts]), whole.scales)
    assert torch.equal(rows, before)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageProblem, match="blocks of 16"):
        quantize(torch.zeros(1, 24), ONE)
    for wrong in (0.0, -1.0, 1e-40, float("nan"), float("inf")):
        with pytest.raises(UsageProblem, match="global scale"):
            quantize(torch.zeros(1, 16), np.float32(wrong))
