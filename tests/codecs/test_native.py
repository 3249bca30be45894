"""Our kernels equal ggml's encoders bit for bit, whatever the rows, the importance and the split."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import gguf
import numpy as np
import pytest
import torch
from codec_strategies import IMPORTANCE_KINDS, KINDS, importance_of, make_importance, make_rows, rows_of
from encoding import make_encoder
from hypothesis import given, settings

from qexport.codecs import contract, ggml
from qexport.codecs.decode_blocks import IQ4_VALUES
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.codecs.native import KERNELS, quantize_into
from qexport.errors import InputError, UsageProblem

needs_ggml = pytest.mark.skipif(not ggml.is_available(), reason="xllamacpp is not installed")
COLUMNS = 512
STEPS = {"Q2_K": 3, "Q4_K": 15, "Q5_K": 31, "Q4_1": 15, "Q5_1": 31}


def pack(type_name: str, rows: torch.Tensor, importance: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    out = np.full((len(rows), GGML_TYPES[type_name].row_bytes(rows.shape[1])), 0xAA, np.uint8)
    return out, quantize_into(type_name, rows, importance, out)


def check(type_name: str, rows: torch.Tensor, importance: np.ndarray | None) -> None:
    expected = ggml.quantize_rows(type_name, rows.float().numpy(), importance)
    packed, bad = pack(type_name, rows, importance)
    assert (bad == 0) == ggml.rows_are_valid(type_name, expected)
    if not bad:
        assert np.array_equal(packed, expected)


@needs_ggml
@pytest.mark.parametrize("type_name", KERNELS)
@given(rows=rows_of(COLUMNS), importance=importance_of(COLUMNS))
@settings(max_examples=300, deadline=None)
def test_equals_ggml(type_name: str, rows: np.ndarray, importance: np.ndarray | None) -> None:
    check(type_name, torch.from_numpy(rows), importance)
    narrow = torch.from_numpy(rows).to(torch.bfloat16)
    if narrow.isfinite().all():
        check(type_name, narrow, importance)


@needs_ggml
@pytest.mark.parametrize("type_name", KERNELS)
def test_equals_ggml_for_every_pair_of_kinds(type_name: str) -> None:
    for seed in range(10):
        for kind in KINDS:
            rows = torch.from_numpy(make_rows(kind, seed, 3, COLUMNS))
            for weights in IMPORTANCE_KINDS:
                check(type_name, rows, make_importance(weights, seed, COLUMNS))


@needs_ggml
@pytest.mark.parametrize("type_name", KERNELS)
@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_any_number_of_rows_and_blocks(type_name: str, count: int) -> None:
    block = GGML_TYPES[type_name].block
    for blocks in (1, 3, 9):
        rows = torch.from_numpy(make_rows("heavy", count, count, block * blocks)).to(torch.bfloat16)
        for weights in (None, make_importance("squares", count, block * blocks)):
            check(type_name, rows, weights)


SCALES, MINIMA = [63, 1, 2, 4, 8, 16, 32, 33], [63, 0, 1, 5, 62, 17, 40, 33]


@pytest.mark.parametrize("weights", [None, np.ones(256, np.float32)])
@pytest.mark.parametrize(("type_name", "levels"), [("Q4_K", 16), ("Q5_K", 32)])
def test_k_block_by_hand(type_name: str, levels: int, weights: np.ndarray | None) -> None:
    """Steps of 1, so that codes are the numbers themselves."""
    level = np.arange(32) % levels
    values = np.float32(np.outer(SCALES, level) - np.array(MINIMA)[:, None]).reshape(1, 256)
    packed, bad = pack(type_name, torch.from_numpy(values), weights)
    assert bad == 0
    assert packed[0, :4].view(np.float16).tolist() == [1, 1]
    assert packed[0, 4:16].tolist() == [
        *(63, 1 | 1 << 6, 2 | 2 << 6, 4 | 2 << 6),  # scales 0 to 3, upper bits of 4 to 7: 0, 1, 2, 2
        *(63 | 3 << 6, 0 | 1 << 6, 1 | 2 << 6, 5 | 2 << 6),  # the same of minima: 3, 1, 2, 2
        *(8 | 14 << 4, 0 | 1 << 4, 0 | 8 << 4, 1 | 1 << 4),  # lower bits of both
    ]
    if type_name == "Q5_K":
        assert packed[0, 16:48].tolist() == [0] * 16 + [0xFF] * 16
    nibbles = [17 * (i % 16) for i in range(32)]  # two sub-blocks, the same level
    assert packed[0, -128:].tolist() == nibbles * 4


@pytest.mark.parametrize("weights", [None, np.ones(256, np.float32)])
def test_q2_k_block_by_hand(weights: np.ndarray | None) -> None:
    scales, minima = np.array([15, 1, 2, 3, 4, 5, 8, 9] * 2), np.array([0, 15, 1, 2, 9, 8, 4, 3] * 2)
    values = np.float32(scales[:, None] * (np.arange(16) % 4) - minima[:, None]).reshape(1, 256)
    packed, bad = pack("Q2_K", torch.from_numpy(values), weights)
    assert bad == 0
    assert packed[0, :16].tolist() == (scales | minima << 4).tolist()
    assert packed[0, 16:80].tolist() == [0b00000000, 0b01010101, 0b10101010, 0b11111111] * 16
    assert packed[0, 80:].view(np.float16).tolist() == [1, 1]


@pytest.mark.parametrize("weights", [None, np.ones(32, np.float32)])
def test_q4_1_and_q5_1_blocks_by_hand(weights: np.ndarray | None) -> None:
    level = np.arange(32) % 16
    packed, _ = pack("Q4_1", torch.from_numpy(np.float32(level * 0.5 - 3))[None], weights)
    assert packed[0, :4].view(np.float16).tolist() == [0.5, -3]
    assert packed[0, 4:].tolist() == [17 * i for i in range(16)]
    packed, _ = pack("Q5_1", torch.from_numpy(np.float32(np.arange(32) * 0.5 - 3))[None], weights)
    assert packed[0, :4].view(np.float16).tolist() == [0.5, -3]
    assert packed[0, 4:8].tolist() == [0, 0, 0xFF, 0xFF]
    assert packed[0, 8:].tolist() == [17 * i for i in range(16)]


@needs_ggml
def test_levels_of_iq4_change_in_the_middle() -> None:
    """A block whose scale is 1, with the numbers next to every middle between two levels."""
    middles = (IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2
    near = np.float32([np.nextafter(middles, -np.inf, dtype=np.float32), middles]).T.reshape(-1)
    values = np.concatenate([near, [-127.0, 113.0]]).astype(np.float32)[None]
    weights = np.float32([1e-8] * 30 + [1e8] * 2)  # the last two alone say the scale
    packed, bad = pack("IQ4_NL", torch.from_numpy(values), weights)
    assert bad == 0
    assert packed[0, :2].view(np.float16).tolist() == [1]
    nibbles = np.concatenate([packed[0, 2:] & 15, packed[0, 2:] >> 4])
    assert nibbles.tolist() == [*np.arange(30) // 2 + np.arange(30) % 2, 0, 15]
    assert np.array_equal(packed, ggml.quantize_rows("IQ4_NL", values, weights))


def test_minimum_keeps_the_sign_of_zero() -> None:
    values = torch.ones(1, 32)
    values[0, 3], values[0, 9] = -0.0, 0.0
    assert pack("Q4_1", values)[0][0, 2:4].tolist() == [0, 0x80]  # the first of the two


@pytest.mark.parametrize(
    "type_name", [name for name in KERNELS if name not in ("Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS")]
)
def test_zero_rows(type_name: str) -> None:
    for weights in (None, np.ones(COLUMNS, np.float32)):
        packed, bad = pack(type_name, torch.zeros(2, COLUMNS), weights)
        assert bad == 0
        assert not packed.any()
        assert pack(type_name, torch.zeros(0, COLUMNS), weights)[0].shape[0] == 0


@pytest.mark.parametrize("type_name", STEPS)  # test_symmetric_types.py has the others
@pytest.mark.parametrize("kind", ["normal", "heavy", "negative", "positive"])
def test_independent_decoder_bounds_the_error(type_name: str, kind: str) -> None:
    """The worst error of a block: half a step of its extent, zero included, and what stored scales add."""
    rows = make_rows(kind, 7, 40, COLUMNS)
    packed, _ = pack(type_name, torch.from_numpy(rows))
    decoded = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[type_name])
    blocks = rows.reshape(-1, GGML_TYPES[type_name].block)
    extent = np.maximum(blocks.max(1), 0) - np.minimum(blocks.min(1), 0)
    error = np.abs(decoded - rows).reshape(blocks.shape).max(1)
    room = 1.1 if type_name.endswith("_K") else 0.53  # scales and minima of 4 or 6 bits
    assert (error <= room * extent / STEPS[type_name]).all()


@pytest.mark.parametrize("type_name", KERNELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e9])
def test_what_the_type_cannot_hold_is_refused(type_name: str, value: float) -> None:
    if (type_name, value) == ("MXFP4", 1e9):
        return  # its scales are powers of two, up to the largest float32
    for weights in (None, make_importance("squares", 1, COLUMNS)):
        encoder = make_encoder(type_name, weights)
        for place in ((0, 0), (1, 40), (33, COLUMNS - 1)):
            rows = torch.ones(34, COLUMNS)
            rows[place] = value
            with pytest.raises(InputError, match=f"rows 10 to 43 .* {type_name}"):
                encoder.encode(rows, 10)


@pytest.mark.parametrize("type_name", KERNELS)
def test_split_and_threads_do_not_matter(type_name: str) -> None:
    rows = torch.from_numpy(make_rows("heavy", 1, 70, COLUMNS)).to(torch.bfloat16)
    encoder = make_encoder(type_name, make_importance("squares", 3, COLUMNS))
    whole = encoder.encode(rows, 0)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: encoder.encode(rows[start : start + 9], start), range(0, 70, 9)))
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("type_name", KERNELS)
def test_float16_in_chunks(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(make_rows("normal", 1, 100, COLUMNS)).to(torch.float16)
    monkeypatch.setattr(contract, "CHUNK_VALUES", 40 * COLUMNS)
    packed = make_encoder(type_name).encode(rows, 0)
    assert np.array_equal(packed, pack(type_name, rows.float())[0])


def test_rows_at_odd_addresses_and_read_only_importance() -> None:
    raw = np.zeros(COLUMNS * 2 + 1, np.uint8)
    values = torch.randn(1, COLUMNS).to(torch.bfloat16)
    raw[1:] = values.view(torch.uint8).numpy()[0]
    odd = torch.frombuffer(raw[1:], dtype=torch.bfloat16).reshape(1, COLUMNS)
    importance = make_importance("squares", 5, COLUMNS)
    assert importance is not None
    strided = np.repeat(importance, 2)[::2]
    strided.flags.writeable = False
    for type_name, module in KERNELS.items():
        expected = pack(type_name, values, importance)[0]
        before = compiled_signatures(module)
        assert np.array_equal(pack(type_name, odd, strided)[0], expected)
        assert compiled_signatures(module) == before


def compiled_signatures(module: str) -> int:
    names = vars(import_module(f"qexport.codecs.{module}"))
    return sum(len(names[name].signatures) for name in names if name.startswith("_encode"))


def test_wrong_arguments_do_not_reach_the_kernel() -> None:
    rows, out = torch.zeros(2, 256), np.empty((2, 144), np.uint8)
    with pytest.raises(UsageProblem, match="float16"):
        quantize_into("Q4_K", rows.half(), None, out)
    with pytest.raises(UsageProblem, match="blocks"):
        quantize_into("Q4_K", torch.zeros(2, 128), None, out)
    with pytest.raises(UsageProblem, match="do not pack"):
        quantize_into("Q4_K", rows, None, out[:1])
    with pytest.raises(UsageProblem, match="importance of 256 columns"):
        quantize_into("Q4_K", rows, np.zeros(128, np.float32), out)
    with pytest.raises(UsageProblem, match="float64"):
        quantize_into("Q4_K", rows, np.zeros(256), out)
