"""Block types: the golden bytes of a llama.cpp build for every type, importance per expert, any split."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_strategies import LONG_TABLES, golden_rows, make_rows
from encoding import make_encoder

from qexport.codecs import contract, ggml
from qexport.codecs.contract import (
    Blocks,
    Float,
    Fp8Rows,
    Fp8Tiles,
    Matrices,
    MlxAffine,
    MlxFloat,
    Nvfp4,
    Nvfp4Blocks,
    ggml_stored,
)
from qexport.codecs.engines import GGML, NUMBA, engine_of
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.codecs.native import KERNELS
from qexport.errors import InputError, UsageProblem

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
# NVFP4 has a scale of the matrix beside it, which ggml's own encoder does not know.
_ONE_STREAM = [name for name in GGML_TYPES if name != "NVFP4"]
needs_ggml = pytest.mark.skipif(not ggml.is_available(), reason="xllamacpp is not installed")


@needs_ggml
@pytest.mark.parametrize("type_name", [name for name in _ONE_STREAM if name not in LONG_TABLES])
def test_golden(type_name: str) -> None:
    rows, importance = golden_rows()
    for label, weights in (("plain", None), ("importance", importance)):
        if weights is None and type_name in ggml.ABORTS_WITHOUT_IMPORTANCE:
            continue
        encoder = make_encoder(type_name, weights)
        packed = encoder.encode(torch.from_numpy(rows), 0)
        assert isinstance(packed, np.ndarray)
        assert packed.shape == (len(rows), GGML_TYPES[type_name].row_bytes(rows.shape[1]))
        assert encoder.stored.name == type_name
        assert hashlib.sha256(packed.tobytes()).hexdigest() == GOLDEN[f"{type_name} {label}"]


def test_golden_says_which_types_use_importance() -> None:
    for name in _ONE_STREAM:
        stored = ggml_stored(name)
        uses = isinstance(stored, Blocks) and stored.uses_importance
        assert uses == (GOLDEN.get(f"{name} plain") != GOLDEN[f"{name} importance"])


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
        for stop in (start + 1, start + 7, len(rows)):
            assert np.array_equal(
                encoder.encode(rows[start:stop], start), expected[start : min(stop, len(rows))]
            )
    with pytest.raises(UsageProblem, match="row 15"):
        encoder.encode(rows[:1], 15)


@needs_ggml
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(make_rows("heavy", 3, 9, 256)).to(torch.float16)
    whole = {name: make_encoder(name).encode(rows, 0) for name in ("Q4_K", "IQ4_XS", "Q8_0")}
    monkeypatch.setattr(contract, "CHUNK_VALUES", 700)
    for name, expected in whole.items():
        assert np.array_equal(make_encoder(name).encode(rows, 0), expected)


@needs_ggml
def test_values_that_cannot_be_stored() -> None:
    for value in (float("nan"), float("inf"), 1e9):
        rows = torch.zeros(2, 256)
        rows[1, 3] = value
        for name in ("Q4_K", "Q4_0", "IQ4_NL", "IQ3_S"):  # ggml would abort in the last
            with pytest.raises(InputError, match=f"rows 4 to 5 .* {name}"):
                make_encoder(name).encode(rows, 4)


def test_importance_shapes() -> None:
    for table, height, message in (
        (np.ones((2, 256), np.float32), None, "2 matrices needs their height"),
        (np.ones(256, np.float32), None, r"not float32 \(256,\)"),
        (np.ones((1, 256)), None, "not float64"),
    ):
        with pytest.raises(UsageProblem, match=message):
            Matrices(height, table)
    with pytest.raises(UsageProblem, match="not of 3 matrices"):
        Matrices(4, np.ones((2, 256), np.float32), np.ones(3))


def test_types_are_values() -> None:
    assert ggml_stored("q5_k") == Blocks("Q5_K")
    assert repr(ggml_stored("iq4_nl")) == "Blocks(name='IQ4_NL')"
    for stored in (
        Blocks("Q4_K"),
        Float("BF16"),
        MlxAffine(4, 64),
        MlxFloat("mxfp4"),
        Fp8Rows(),
        Fp8Tiles(),
        Nvfp4(),
        Nvfp4Blocks(),
    ):
        assert pickle.loads(pickle.dumps(stored)) == stored
        assert eval(repr(stored)) == stored
        assert engine_of(stored)[0].name == "numba"
    assert set(KERNELS) == {name for name in _ONE_STREAM if GGML_TYPES[name].block > 1} - ggml.ONLY_GGML
    assert {engine_of(Blocks(name))[0].name for name in ggml.ONLY_GGML} == {"ggml"}
    assert ggml_stored("nvfp4") == Nvfp4Blocks()


@needs_ggml
def test_engines_write_the_same_bytes() -> None:
    rows, importance = golden_rows()
    for name in KERNELS:
        for weights in (None, importance):
            one, other = (
                make_encoder(name, weights, engines=[engine]).encode(torch.from_numpy(rows), 0)
                for engine in (NUMBA, GGML)
            )
            assert np.array_equal(one, other)
    with pytest.raises(UsageProblem, match="none of ggml can encode BF16"):
        engine_of(Float("BF16"), [GGML])
