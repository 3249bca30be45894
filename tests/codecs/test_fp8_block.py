"""FP8 in tiles: compressed-tensors' scales and codes, torch's rounding, the values that readers find."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import runtime_oracles as oracles
import torch
from codec_strategies import KINDS, make_rows
from decoding import fp8_tiles
from encoding import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from make_golden_runtimes import DTYPES, GOLDEN, digest, rows_in

from qexport.codecs.contract import FP8_TILE, Fp8Rows, Fp8Tiles, Known
from qexport.codecs.fp8_block import TILE, Quantized, Style, encode_rows, quantize
from qexport.codecs.small_floats import e4m3_bits, e4m3_value
from qexport.errors import InputError, UsageProblem

KNOWN = json.loads(GOLDEN.read_text())["hashes"]
CODES = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
"""All but the two NaNs."""
matrices = st.builds(
    make_rows, st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.just(TILE), st.sampled_from([128, 256])
)


def everything(made: Quantized) -> bytes:
    return made.codes.tobytes() + oracles.raw(made.scales)


@pytest.mark.parametrize("dtype", DTYPES)
def test_golden(dtype: torch.dtype) -> None:
    made, key = quantize(rows_in(dtype)), f"fp8 {str(dtype).removeprefix('torch.')}"
    assert made.bad == 0
    assert digest(everything(made)) == KNOWN[key]
    assert digest(oracles.raw(fp8_tiles(made.codes, made.scales))) == KNOWN[f"{key} decoded"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_golden_in_the_style_of_compressed_tensors(dtype: torch.dtype) -> None:
    made = quantize(rows_in(dtype), Style.COMPRESSED_TENSORS)
    assert made.scales.dtype == dtype
    key = f"fp8 compressed-tensors {str(dtype).removeprefix('torch.')}"
    assert digest(everything(made)) == KNOWN[key]


@oracles.needs_compressed_tensors
@given(rows=matrices, dtype=st.sampled_from(DTYPES))
@settings(max_examples=150, deadline=None)
def test_equals_what_llm_compressor_calls(rows: np.ndarray, dtype: torch.dtype) -> None:
    source = oracles.finite(rows, dtype)
    made, (codes, scales) = quantize(source, Style.COMPRESSED_TENSORS), oracles.ct_fp8_block(source)
    assert oracles.raw(made.scales) == oracles.raw(scales)
    assert np.array_equal(made.codes, codes)


@given(rows=matrices, dtype=st.sampled_from(DTYPES))
@settings(deadline=None)
def test_compressed_tensors_formula(rows: np.ndarray, dtype: torch.dtype) -> None:
    source = oracles.finite(rows, dtype)
    made = quantize(source, Style.COMPRESSED_TENSORS)
    scales = source.view(1, TILE, -1, TILE).abs().amax((1, 3)) / 448  # in the dtype of the rows
    scales = torch.where(scales == 0, torch.finfo(dtype).eps, scales)
    levels = source / scales.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
    expected = levels.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert oracles.raw(made.scales) == oracles.raw(scales)
    assert np.array_equal(made.codes, expected)


@given(rows=st.builds(make_rows, st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.just(5), st.just(48)))
@settings(max_examples=50, deadline=None)
def test_a_scale_for_each_row(rows: np.ndarray) -> None:
    for dtype in DTYPES:
        source = oracles.finite(rows, dtype)
        codes, scales = encode_rows(Fp8Rows(), source, Known()).streams
        wanted = source.abs().amax(1, keepdim=True) / 448  # in the dtype of the rows
        wanted = torch.where(wanted == 0, torch.finfo(dtype).eps, wanted)
        levels = (source / wanted).clamp(-448, 448).to(torch.float8_e4m3fn)
        assert scales.tobytes() == oracles.raw(wanted)
        assert np.array_equal(codes, levels.view(torch.uint8).numpy())


@given(rows=matrices, dtype=st.sampled_from(DTYPES))
@settings(deadline=None)
def test_native_formula(rows: np.ndarray, dtype: torch.dtype) -> None:
    source = oracles.finite(rows, dtype)
    made = quantize(source)
    tops = source.float().view(1, TILE, -1, TILE).abs().amax((1, 3))
    scales = (tops / 448).to(torch.bfloat16).clamp(min=2.0**-126)
    scales = torch.where(tops == 0, 1, scales)
    levels = source.float() / scales.float().repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
    expected = levels.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert oracles.raw(made.scales) == oracles.raw(scales)
    assert np.array_equal(made.codes, expected)


@oracles.needs_compressed_tensors
@given(rows=matrices, dtype=st.sampled_from(DTYPES))
@settings(max_examples=150, deadline=None)
def test_equals_compressed_tensors(rows: np.ndarray, dtype: torch.dtype) -> None:
    source = oracles.finite(rows, dtype)
    made, scales = quantize(source), oracles.ct_fp8_scales(source)
    tops = source.float().view(1, TILE, -1, TILE).abs().amax((1, 3))
    usual = tops >= 448 * 2.0**-126
    assert torch.equal(made.scales[usual], scales[usual])
    assert made.scales[tops == 0].eq(1).all()
    assert np.array_equal(made.codes, oracles.ct_fp8_codes(source, made.scales))
    decoded = oracles.ct_fp8_dequantized(made.codes, made.scales)
    assert oracles.raw(fp8_tiles(made.codes, made.scales)) == oracles.raw(decoded)


@pytest.mark.slow
def test_transformers_reads_the_same_values() -> None:
    reader = pytest.importorskip("transformers.integrations.finegrained_fp8")
    made = quantize(rows_in(torch.bfloat16))
    codes = torch.from_numpy(made.codes).view(torch.float8_e4m3fn)
    decoded = reader.Fp8Dequantize(None)._dequantize_one(codes, made.scales, torch.float32)
    assert torch.equal(fp8_tiles(made.codes, made.scales), decoded)


def test_every_code_comes_back() -> None:
    values = torch.from_numpy(CODES).view(torch.float8_e4m3fn).float()
    tile = values.repeat(TILE * TILE // len(values) + 1)[: TILE * TILE].view(TILE, TILE)
    made = quantize(torch.cat([tile * 2.0**-9, tile * 2.0**5], 1))
    assert made.scales.tolist() == [[2.0**-9, 2.0**5]]
    expected = tile.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(made.codes, np.concatenate([expected, expected], 1))  # both zeros, too
    assert torch.equal(fp8_tiles(made.codes, made.scales), torch.cat([tile * 2.0**-9, tile * 2.0**5], 1))


def test_rounding_is_torchs() -> None:
    steps = torch.from_numpy(CODES[CODES < 0x7F]).view(torch.float8_e4m3fn).float().numpy()
    middles = (steps[1:] + steps[:-1]) / 2
    near = [steps, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(448))]
    values = np.concatenate([*near, np.float32([1e-40, 1e-20, 463.9, 464])])
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).tolist()
    assert [int(e4m3_bits(np.float32(value))) for value in values] == expected
    assert [float(e4m3_value(np.uint8(code))) for code in range(0x7F)] == steps.tolist()


def test_the_scale_is_rounded_before_it_divides() -> None:
    rows = torch.zeros(TILE, TILE)
    rows[0, :2] = torch.tensor([449.0, -225.0])  # 449 / 448 is 1 in bfloat16
    made = quantize(rows)
    assert made.scales.item() == 1.0
    assert fp8_tiles(made.codes, made.scales)[0, :2].tolist() == [448.0, -224.0]


def test_scales_halfway_go_to_the_even_one() -> None:
    rows = torch.zeros(TILE, 2 * TILE)
    rows[1, 2], rows[3, TILE] = 448 * (1 + 2.0**-8), -448 * (1 + 3 * 2.0**-8)
    made = quantize(rows)
    assert made.scales.tolist() == [[1.0, 1 + 2.0**-6]]
    assert (made.codes[1, 2], made.codes[3, TILE]) == (0x7E, 0xFE)


def test_zeros_and_the_smallest_scale() -> None:
    rows = torch.zeros(TILE, 3 * TILE)
    rows[5, TILE + 1], rows[6, 2 * TILE] = 2.0**-120, 2.0**-126 * 448
    made = quantize(rows)
    assert made.scales.tolist() == [[1.0, 2.0**-126, 2.0**-126]]
    assert np.count_nonzero(made.codes) == 2
    assert torch.equal(fp8_tiles(made.codes, made.scales), rows)
    assert quantize(rows[:0]).codes.shape == (0, 3 * TILE)


@given(rows=matrices)
@settings(deadline=None)
def test_error_is_half_a_step(rows: np.ndarray) -> None:
    made = quantize(torch.from_numpy(rows))
    scales = made.scales.double().repeat_interleave(TILE, 0).repeat_interleave(TILE, 1).numpy()
    error = np.abs(fp8_tiles(made.codes, made.scales).numpy().astype(np.float64) - rows)
    # eight steps in a power of two, of 2**-9 and more; float32 loses less than the rest
    assert (error <= 1.0001 * np.maximum(np.abs(rows) * 2.0**-4, scales * 2.0**-10)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_counted(wrong: float, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(make_rows("normal", 2, 2 * TILE, 2 * TILE)).to(dtype)
    clean = quantize(rows)
    rows[3, 200] = rows[4, 201] = wrong
    made = quantize(rows)
    assert (clean.bad, made.bad) == (0, 1)
    assert np.array_equal(made.codes[TILE:], clean.codes[TILE:])
    assert np.array_equal(made.codes[:, :TILE], clean.codes[:, :TILE])


def test_split_and_threads_do_not_matter() -> None:
    rows = torch.from_numpy(make_rows("heavy", 1, 4 * TILE, 2 * TILE)).to(torch.bfloat16)
    before, whole = rows.clone(), quantize(rows)
    with ThreadPoolExecutor(4) as pool:
        starts = range(0, len(rows), TILE)
        parts = list(pool.map(lambda start: quantize(rows[start : start + TILE]), starts))
    assert np.array_equal(np.concatenate([part.codes for part in parts]), whole.codes)
    assert torch.equal(torch.cat([part.scales for part in parts]), whole.scales)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("shape", [(192, 128), (128, 320), (1, 128)])
def test_partial_tiles_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(UsageProblem, match=f"{shape[0]} by {shape[1]}"):
        quantize(torch.zeros(shape))


@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("dtype", DTYPES)
def test_encoder(dtype: torch.dtype, style: Style) -> None:
    rows = torch.from_numpy(make_rows("normal", 4, 2 * TILE, 2 * TILE)).to(dtype)
    encoder = Encoder(Fp8Tiles(style.value))
    assert encoder.stored.rows_together == FP8_TILE == TILE
    codes, scales = encoder.encode(rows, 0)
    made = quantize(rows, style)
    assert codes.tobytes() + scales.tobytes() == everything(made)
    names = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    assert Fp8Tiles(style.value).scale_dtype(names[dtype]) == names[made.scales.dtype]
    rows[200, 3] = float("nan")
    with pytest.raises(InputError, match="rows 128 to 383 hold values that F8_E4M3"):
        encoder.encode(rows, TILE)
