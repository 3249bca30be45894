"""make_encoder: the golden bytes of a llama.cpp build for every type, importance per expert, any split."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_strategies import golden_rows, make_rows

from qexport.codecs import encoder_parts, ggml
from qexport.codecs.encoders import make_encoder, uses_importance
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.errors import InputError, UsageProblem
from qexport.formats.plan import Encoder

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
needs_ggml = pytest.mark.skipif(not ggml.is_available(), reason="xllamacpp is not installed")


@needs_ggml
@pytest.mark.parametrize("type_name", GGML_TYPES)
def test_golden(type_name: str) -> None:
    rows, importance = golden_rows()
    for label, weights in (("plain", None), ("importance", importance)):
        encoder: Encoder = make_encoder(type_name, weights)
        packed = encoder.encode(torch.from_numpy(rows), 0)
        assert isinstance(packed, np.ndarray)
        assert packed.shape == (len(rows), encoder.row_bytes(rows.shape[1]))
        assert encoder.type_name == type_name
        assert hashlib.sha256(packed.tobytes()).hexdigest() == GOLDEN[f"{type_name} {label}"]


def test_golden_says_which_types_use_importance() -> None:
    for name in GGML_TYPES:
        assert uses_importance(name) == (GOLDEN[f"{name} plain"] != GOLDEN[f"{name} importance"])


@needs_ggml
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_experts_have_their_own_importance(dtype: torch.dtype) -> None:
    matrices, per_matrix, columns = 3, 5, 512
    rows = torch.from_numpy(make_rows("normal", 1, matrices * per_matrix, columns)).to(dtype)
    importance = np.square(make_rows("normal", 2, matrices, columns))
    wide = rows.float().numpy()
    expected = np.concatenate(
        [ggml.quantize_rows("Q4_K", wide[5 * m : 5 * m + 5], importance[m]) for m in range(matrices)]
    )
    encoder = make_encoder("Q4_K", importance, per_matrix)
    for start in range(len(rows)):
        for stop in (start, start + 1, start + 7, len(rows)):
            assert np.array_equal(
                encoder.encode(rows[start:stop], start), expected[start : min(stop, len(rows))]
            )
    with pytest.raises(UsageProblem, match="row 15"):
        encoder.encode(rows[:1], 15)


@needs_ggml
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(make_rows("heavy", 3, 9, 256)).to(torch.float16)
    whole = {name: make_encoder(name).encode(rows, 0) for name in ("Q4_K", "IQ4_XS", "Q8_0")}
    monkeypatch.setattr(encoder_parts, "CHUNK_VALUES", 700)
    for name, expected in whole.items():
        assert np.array_equal(make_encoder(name).encode(rows, 0), expected)


@needs_ggml
def test_values_that_cannot_be_stored() -> None:
    for value in (float("nan"), float("inf"), 1e9):
        rows = torch.zeros(2, 256)
        rows[1, 3] = value
        for name in ("Q4_K", "Q4_0", "IQ4_NL"):
            with pytest.raises(InputError, match=f"rows 4 to 5 .* {name}"):
                make_encoder(name).encode(rows, 4)


def test_importance_shapes() -> None:
    with pytest.raises(UsageProblem, match="rows_per_matrix"):
        make_encoder("Q4_K", np.ones((2, 256), np.float32))
    with pytest.raises(UsageProblem, match="float64"):
        make_encoder("Q4_K", np.ones(256))
    # shared by all rows, however it is spelled; ignored where it has no use
    assert make_encoder("Q4_K", np.ones((1, 256), np.float32)).type_name == "Q4_K"
    assert repr(make_encoder("Q8_0", np.ones(32, np.float32))) == "NativeEncoder('Q8_0')"


def test_repr() -> None:
    assert repr(make_encoder("q5_k")) == "NativeEncoder('Q5_K')"
    assert repr(make_encoder("iq4_nl")) == "GgmlEncoder('IQ4_NL')"
    weighted = make_encoder("IQ4_XS", np.ones((4, 256), np.float32), 8)
    assert repr(weighted) == "GgmlEncoder('IQ4_XS', importance=<4x256>, rows_per_matrix=8)"
