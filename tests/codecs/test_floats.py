"""F32, F16 and BF16 equal gguf-py's bits."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from encoding import make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qexport.codecs.floats import FLOAT_CODECS
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.errors import InputError

SOURCES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
TYPES = ["F32", "F16", "BF16"]


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("source", ["bf16", "f16"])
def test_every_16_bit_value(type_name: str, source: str) -> None:
    rows = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(SOURCES[source]).reshape(256, 256)
    check(type_name, rows)


@pytest.mark.parametrize("type_name", TYPES)
@given(bits=arrays(np.uint32, (3, 8), elements=st.integers(0, 2**32 - 1)))
@settings(max_examples=150, deadline=None)
def test_any_float32(type_name: str, bits: np.ndarray) -> None:
    check(type_name, torch.from_numpy(bits.view(np.float32)))


def check(type_name: str, rows: torch.Tensor) -> None:
    wide = rows.to(torch.float32).numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = gguf.quants.quantize(wide, gguf.GGMLQuantizationType[type_name]).view(np.uint8)
    packed = FLOAT_CODECS[type_name](rows)
    if SOURCES.get(type_name.lower()) == rows.dtype:
        expected = rows.view(torch.uint8).numpy()  # a plain copy, NaNs as they are
    assert packed.dtype == np.uint8
    assert np.array_equal(packed, expected)


def test_nearest_even() -> None:
    halves = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0]])
    bf16 = FLOAT_CODECS["BF16"](halves).view(np.uint16)
    assert bf16.tolist() == [[0x3F80, 0x3F82, 0x3F81, 0x8000]]
    f16 = FLOAT_CODECS["F16"](torch.tensor([[65504.0, 65519.99, 65520.0, 2.0**-25, 3 * 2.0**-25]])).view(
        np.uint16
    )
    assert f16.tolist() == [[0x7BFF, 0x7BFF, 0x7C00, 0, 2]]


def test_encoder_refuses_what_float16_cannot_hold() -> None:
    encoder = make_encoder("F16")
    rows = torch.tensor([[1.0, 7e4], [float("inf"), 0.0]], dtype=torch.bfloat16)
    with pytest.raises(InputError, match="F16 cannot hold 1 of the values"):
        encoder.encode(rows, 0)
    assert encoder.encode(rows[1:], 0).view(np.uint16).tolist() == [[0x7C00, 0]]
    assert encoder.encode(rows[:0], 0).shape == (0, 4)


@pytest.mark.parametrize("type_name", TYPES)
def test_encoder(type_name: str) -> None:
    encoder = make_encoder(type_name.lower())
    assert repr(encoder.stored) == f"Float(name={type_name!r}, through=None)"
    rows = torch.randn(6, 10)[::2, 1:]  # not contiguous
    packed = encoder.encode(rows, 0)
    assert packed.shape == (3, GGML_TYPES[type_name].row_bytes(9))
    decoded = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[type_name])
    assert np.allclose(decoded, rows.numpy(), rtol=2**-8)
