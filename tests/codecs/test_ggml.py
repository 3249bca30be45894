"""ggml's encoders through ctypes: found without an import, checked before they can abort, safe in threads."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from codec_strategies import make_rows

from qexport.codecs import ggml
from qexport.errors import EnvironmentProblem, UsageProblem

needs_ggml = pytest.mark.skipif(not ggml.is_available(), reason="xllamacpp is not installed")

# Root mean square error of bell-shaped rows, relative to their own, with some room.
ERRORS = {
    "Q2_K": 0.35,
    "Q3_K": 0.18,
    "IQ3_S": 0.19,
    "IQ3_XXS": 0.27,
    "Q4_0": 0.11,
    "IQ4_XS": 0.09,
    "IQ4_NL": 0.09,
    "Q4_1": 0.09,
    "Q4_K": 0.08,
    "Q5_0": 0.05,
    "Q5_1": 0.05,
    "Q5_K": 0.04,
    "Q6_K": 0.02,
    "Q8_0": 0.007,
}


@needs_ggml
def test_xllamacpp_is_not_imported() -> None:
    code = (
        "import sys, numpy as np; from qexport.codecs import ggml; "
        "ggml.quantize_rows('Q4_K', np.ones((1, 256), np.float32)); print('xllamacpp' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@needs_ggml
@pytest.mark.parametrize("type_name", ERRORS)
def test_independent_decoder(type_name: str) -> None:
    rows, importance = make_rows("normal", 1, 16, 512), np.square(make_rows("normal", 2, 1, 512))[0]
    for weights in (None, importance):
        packed = ggml.quantize_rows(type_name, rows, weights)
        decoded = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[type_name])
        error = np.sqrt(np.square(decoded - rows).sum() / np.square(rows).sum())
        assert error < ERRORS[type_name]
        assert ggml.rows_are_valid(type_name, packed)


@needs_ggml
@pytest.mark.parametrize("type_name", [name for name in ERRORS if name != "Q8_0"])
def test_importance_lowers_the_weighted_error(type_name: str) -> None:
    rows = make_rows("heavy", 5, 8, 512)
    importance = np.square(make_rows("heavy", 6, 1, 512))[0]
    kind = gguf.GGMLQuantizationType[type_name]
    plain, weighted = (
        (
            np.square(gguf.quants.dequantize(ggml.quantize_rows(type_name, rows, w), kind) - rows)
            * importance
        ).sum()
        for w in (None, importance)
    )
    assert weighted < plain


@needs_ggml
def test_threads_agree() -> None:
    rows = make_rows("normal", 2, 32, 256)
    whole = ggml.quantize_rows("Q4_K", rows)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: ggml.quantize_rows("Q4_K", rows[i : i + 1]), range(32)))
    assert np.array_equal(np.concatenate(parts), whole)


@needs_ggml
def test_wrong_arguments_do_not_reach_c() -> None:
    rows = np.zeros((2, 256), np.float32)
    assert ggml.quantize_rows("Q4_K", rows[:0]).shape == (0, 144)
    with pytest.raises(UsageProblem, match="float64"):
        ggml.quantize_rows("Q4_K", rows.astype(np.float64))
    with pytest.raises(UsageProblem, match="contiguous"):
        ggml.quantize_rows("Q4_K", np.zeros((256, 2), np.float32).T)
    with pytest.raises(UsageProblem, match="blocks"):
        ggml.quantize_rows("Q4_K", np.zeros((2, 128), np.float32))
    with pytest.raises(UsageProblem, match="importance of 256 columns"):
        ggml.quantize_rows("Q4_K", rows, np.zeros(128, np.float32))
    with pytest.raises(UsageProblem, match="TQ1_0"):
        ggml.quantize_rows("TQ1_0", rows)
    for name in ggml.ABORTS_WITHOUT_IMPORTANCE:
        with pytest.raises(UsageProblem, match=f"{name} needs importance"):
            ggml.quantize_rows(name, rows)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem) as caught:
        ggml.find_library()
    assert "pip install 'qexport[llama]'" in str(caught.value)


def test_a_library_without_the_functions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "xllamacpp.abi3.so").write_bytes(b"not a library")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(ggml, "_library", ggml._library.__wrapped__)
    assert not ggml.is_available()
    with pytest.raises(EnvironmentProblem, match=r"xllamacpp\.abi3\.so does not offer"):
        ggml._library()
