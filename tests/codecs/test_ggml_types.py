"""The table of ggml types equals gguf-py's."""

from __future__ import annotations

import subprocess
import sys

import gguf
import pytest

from qexport.codecs.ggml_types import GGML_TYPES, GgmlType, ggml_type
from qexport.errors import UsageProblem


@pytest.mark.parametrize("kind", GGML_TYPES.values(), ids=lambda kind: kind.name)
def test_equals_gguf(kind: GgmlType) -> None:
    theirs = gguf.GGMLQuantizationType[kind.name]
    assert (kind.id, (kind.block, kind.nbytes)) == (theirs.value, gguf.GGML_QUANT_SIZES[theirs])
    assert eval(repr(kind)) == kind


def test_lookup() -> None:
    assert ggml_type("q4_k") is GGML_TYPES["Q4_K"]
    with pytest.raises(UsageProblem) as caught:
        ggml_type("Q4_K_M")
    assert "known types: F32, F16, BF16, Q8_0" in str(caught.value)


def test_rows_are_whole_blocks() -> None:
    assert GGML_TYPES["Q4_K"].row_bytes(512) == 288
    assert GGML_TYPES["Q4_K"].bits_per_weight == 4.5
    assert not GGML_TYPES["Q8_0"].fits(0)
    with pytest.raises(UsageProblem, match=r"100 .* Q8_0"):
        GGML_TYPES["Q8_0"].row_bytes(100)


def test_the_table_is_light() -> None:
    code = "import sys, qexport.codecs.engines, qexport.codecs.ggml_types; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "numba", "gguf", "xllamacpp"} & set(loaded)
