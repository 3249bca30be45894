"""Decoders equal ggml's C code bit for bit, on any bytes."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
import torch
from codec_strategies import LONG_TABLES, golden_rows
from encoding import make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.codecs import ggml
from qexport.codecs.decode_blocks import float16_at
from qexport.codecs.decoders import decode_rows
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.errors import UsageProblem

needs_ggml = pytest.mark.skipif(not ggml.is_available(), reason="xllamacpp is not installed")

BLOCK_TYPES = [kind.name for kind in GGML_TYPES.values() if kind.is_quantized]


def ggml_decode(type_name: str, packed: np.ndarray, columns: int) -> np.ndarray:
    """``dequantize_row_*`` of the library that has the encoders."""
    name = type_name.lower().replace("_k", "_K")
    function = getattr(ctypes.CDLL(str(ggml.find_library())), f"dequantize_row_{name}")
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function.restype = None
    out = np.empty((len(packed), columns), np.float32)
    function(packed.ctypes.data, out.ctypes.data, out.size)
    return out


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal in every bit, where NaNs are equal whatever they carry."""
    numbers = ~np.isnan(right)
    return bool(
        np.array_equal(np.isnan(left), ~numbers)
        and np.array_equal(left.view(np.uint32)[numbers], right.view(np.uint32)[numbers])
    )


@needs_ggml
@pytest.mark.parametrize("type_name", BLOCK_TYPES)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_equals_ggml_on_any_bytes(type_name: str, seed: int, n: int) -> None:
    columns = 768
    width = GGML_TYPES[type_name].row_bytes(columns)
    packed = np.random.default_rng(seed).integers(0, 256, (n, width), np.uint8)
    assert same_bits(decode_rows(type_name, packed, columns), ggml_decode(type_name, packed, columns))


@pytest.mark.parametrize("type_name", [name for name in GGML_TYPES if name not in ("NVFP4", *LONG_TABLES)])
def test_equals_gguf_py_on_encoded_rows(type_name: str) -> None:
    if type_name.startswith("IQ") and not ggml.is_available():
        pytest.skip("needs ggml's encoders")
    rows, importance = golden_rows()
    packed = make_encoder(type_name, importance).encode(torch.from_numpy(rows), 0)
    decoded = decode_rows(type_name.lower(), packed, rows.shape[1])
    assert decoded.dtype == np.float32
    expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[type_name])
    assert same_bits(decoded, expected.reshape(rows.shape).astype(np.float32))


@needs_ggml
@pytest.mark.parametrize("type_name", sorted(ggml.ONLY_GGML))
def test_without_ggml_it_is_gguf_py(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    width = GGML_TYPES[type_name].row_bytes(512)
    packed = np.random.default_rng(3).integers(0, 60, (3, width), np.uint8)  # no NaN among the scales
    there = decode_rows(type_name, packed, 512)
    monkeypatch.setattr(ggml, "is_available", lambda: False)
    monkeypatch.setattr(ggml, "dequantize_into", None)
    assert same_bits(decode_rows(type_name, packed, 512), there)
    assert np.abs(there).max() > 0


def test_blocks_by_hand() -> None:
    half, one, two = (np.array([v], np.float16).view(np.uint8).tolist() for v in (0.5, 1, 2))
    nibbles = [0x10 + i for i in range(16)]
    block = np.array([half + nibbles], np.uint8)
    assert decode_rows("Q4_0", block, 32)[0].tolist() == [(i - 8) / 2 for i in range(16)] + [-3.5] * 16
    block = np.array([half + two + nibbles], np.uint8)
    assert decode_rows("Q4_1", block, 32)[0].tolist() == [i / 2 + 2 for i in range(16)] + [2.5] * 16
    block = np.array([[*half, 1, 0, 0, 0x80, *nibbles]], np.uint8)
    expected = [(i - 16) / 2 for i in range(16)] + [-7.5] * 16
    expected[0], expected[31] = 0.0, 0.5
    assert decode_rows("Q5_0", block, 32)[0].tolist() == expected
    block = np.array([[*one, 255, 2, *[0] * 30]], np.uint8)
    assert decode_rows("Q8_0", block, 32)[0].tolist() == [-1.0, 2.0] + [0.0] * 30


def test_every_float16() -> None:
    every = np.arange(65536, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        expected = every.view(np.float16).astype(np.float32)
    blocks = np.zeros((65536, 34), np.uint8)
    blocks[:, :2] = every.view(np.uint8).reshape(-1, 2)
    blocks[:, 2] = 1
    assert same_bits(decode_rows("Q8_0", blocks, 32)[:, 0], expected)
    assert float16_at(blocks[0x3C00], 0) == 1


@pytest.mark.parametrize("type_name", ["Q6_K", "BF16", "F16", "F32"])
def test_any_memory(type_name: str) -> None:
    """Read-only, strided or at an odd address."""
    width = GGML_TYPES[type_name].row_bytes(256)
    raw = np.random.default_rng(1).integers(0, 120, 2 * 3 * width + 1, np.uint8)
    odd = raw[1:].reshape(3, 2 * width)[:, :width]
    odd.flags.writeable = False
    decoded = decode_rows(type_name, odd, 256)
    assert same_bits(decoded, decode_rows(type_name, odd.copy(), 256))
    decoded[0, 0] = 7  # an array of its own
    assert decode_rows(type_name, odd[:0], 256).shape == (0, 256)


def test_threads_agree() -> None:
    packed = np.random.default_rng(2).integers(0, 256, (64, 144), np.uint8)
    whole = decode_rows("Q4_K", packed, 256)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: decode_rows("Q4_K", packed[i : i + 1], 256), range(64)))
    assert same_bits(np.concatenate(parts), whole)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageProblem, match="uint8 rows of 144 bytes"):
        decode_rows("Q4_K", np.zeros((2, 143), np.uint8), 256)
    with pytest.raises(UsageProblem, match="float32"):
        decode_rows("Q4_K", np.zeros((2, 144), np.float32), 256)
    with pytest.raises(UsageProblem, match="blocks"):
        decode_rows("Q4_K", np.zeros((2, 144), np.uint8), 255)
