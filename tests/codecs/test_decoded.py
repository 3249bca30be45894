"""What an encoder made is decoded to the numbers that the format's reader makes of the stored tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_strategies import LONG_TABLES
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.torch import save_file

from qexport.artifacts.forms import decoded
from qexport.artifacts.rows import StoredPart
from qexport.checkpoint.local import LocalCheckpoint
from qexport.checkpoint.tensors import torch_dtype
from qexport.codecs.contract import (
    Float,
    Fp8Matrix,
    Fp8Rows,
    Fp8Tiles,
    Known,
    MlxAffine,
    MlxFloat,
    Nvfp4,
    StoredType,
    ggml_stored,
)
from qexport.codecs.decoded import decode
from qexport.codecs.engines import engine_of
from qexport.codecs.ggml_types import GGML_TYPES
from qexport.codecs.mlx_affine import BITS, GROUPS
from qexport.errors import UsageProblem

ROWS, COLUMNS = 256, 512
# Stored tensors in the order of the streams, and what their bytes are; ``source``: the dtype of the rows.
_MLX = {"weight": torch.uint32, "scales": "source", "biases": "source"}
_MX = {"weight": torch.uint32, "scales": torch.uint8}
_E4M3 = torch.float8_e4m3fn
_TILES = {"weight": _E4M3, "scale_inv": torch.bfloat16}
_CT_TILES = {"weight": _E4M3, "weight_scale": "source"}
_MATRIX = {"weight": _E4M3, "weight_scale": torch.float32, "input_scale": torch.float32}
_NVFP4 = {"weight": torch.uint8, "weight_scale": _E4M3, "weight_scale_2": torch.float32}
_CT_NVFP4 = {"weight_packed": torch.uint8, "weight_scale": _E4M3, "weight_global_scale": torch.float32}
Case = tuple[StoredType, Mapping[str, object], str]

CASES: dict[str, Case] = {
    "fp8 native": (Fp8Tiles(), _TILES, "F16"),
    "fp8 compressed": (Fp8Tiles("compressed-tensors"), _CT_TILES, "BF16"),
    "fp8 compressed half": (Fp8Tiles("compressed-tensors"), _CT_TILES, "F16"),
    "fp8 compressed wide": (Fp8Tiles("compressed-tensors"), _CT_TILES, "F32"),
    "fp8 rows": (Fp8Rows(), _CT_TILES, "BF16"),
    "fp8 rows half": (Fp8Rows(), _CT_TILES, "F16"),
    "fp8 matrix": (Fp8Matrix(), _MATRIX, "BF16"),
    "nvfp4": (Nvfp4(), _NVFP4, "BF16"),
    "nvfp4 searched": (Nvfp4(scales="mse"), _NVFP4, "BF16"),
    "nvfp4 compressed": (Nvfp4(divides=True), _CT_NVFP4, "BF16"),
    "nvfp4 compressed half": (Nvfp4(divides=True, scales="mse"), _CT_NVFP4, "F16"),
    **{
        f"mlx {bits} {group} {dtype}": (MlxAffine(bits, group, dtype), _MLX, dtype)
        for bits, group, dtype in (
            *((bits, group, "BF16") for bits in BITS for group in GROUPS),
            (6, 64, "F16"),
            (3, 128, "F32"),
        )
    },
    **{f"mlx {mode}": (MlxFloat(mode), _MX, "BF16") for mode in ("mxfp4", "mxfp8", "nvfp4")},
}


def rows_of(dtype: str) -> torch.Tensor:
    made = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(7)) * 0.02
    return made.to(torch_dtype(dtype))


def known_of(rows: torch.Tensor, *, begins: bool = True) -> Known:
    return Known(largest=float(rows.float().abs().max()), begins=begins)


def encoded(stored: StoredType, rows: torch.Tensor, known: Known) -> tuple[np.ndarray, ...]:
    return engine_of(stored)[1](stored, rows, known).streams


@pytest.mark.parametrize("case", CASES)
def test_as_the_reader_has_it(tmp_path: Path, case: str) -> None:
    stored, names, source = CASES[case]
    rows = rows_of(source)
    streams = encoded(stored, rows, known_of(rows))
    parts = {
        name: torch.from_numpy(stream).view(torch_dtype(source) if kind == "source" else kind)
        for (name, kind), stream in zip(names.items(), streams, strict=True)
    }
    save_file(parts, tmp_path / "model.safetensors", metadata={"format": "pt"})
    folder = LocalCheckpoint(tmp_path, quantized=True, weights=["model.safetensors"])
    there = {name: StoredPart(folder, folder.tensors[name]) for name in names if name != "input_scale"}
    wanted = decoded(case, there, COLUMNS).read(0, ROWS)
    found = decode(stored, streams, COLUMNS, known_of(rows), source)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert 0 < float((found - rows.float()).norm() / rows.float().norm()) < 0.6


@pytest.mark.parametrize("name", [name for name in GGML_TYPES if name not in (*LONG_TABLES, "IQ2_XXS")])
def test_ggmls_types(name: str) -> None:
    stored, rows = ggml_stored(name), rows_of("F32")
    streams = encoded(stored, rows, Known())
    found = decode(stored, streams, COLUMNS, Known())
    assert torch.equal(found, torch.from_numpy(dequantize(streams[0], GGMLQuantizationType[name])))


@pytest.mark.parametrize("source", ["BF16", "F16"])
@pytest.mark.parametrize("stored", [Fp8Matrix(), Nvfp4(), Nvfp4(divides=True)], ids=repr)
def test_rows_that_do_not_begin_their_matrix(stored: StoredType, source: str) -> None:
    rows = rows_of(source)
    whole = decode(stored, encoded(stored, rows, known_of(rows)), COLUMNS, known_of(rows), source)
    later = known_of(rows, begins=False)
    streams = encoded(stored, rows[100:], later)
    assert not len(streams[-1])
    assert torch.equal(decode(stored, streams, COLUMNS, later, source), whole[100:])


def test_an_unknown_type() -> None:
    class Other(StoredType):
        name = "other"

    with pytest.raises(UsageProblem, match="other cannot be decoded"):
        decode(Other(), [np.zeros((1, 1), np.uint8)], 1, Known())


def test_floats_that_were_rounded_twice() -> None:
    stored, rows = Float("F32", through="BF16"), rows_of("F32")
    found = decode(stored, encoded(stored, rows, Known()), COLUMNS, Known())
    assert torch.equal(found, rows.bfloat16().float())
