"""FP8 is called by how many numbers share a scale: a tile, a row, or the tensor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qexport.formats.compressed import COMPRESSED
from qexport.formats.fp8.reading import NATIVE_FP8


def group(bits: int, strategy: str, inputs: int | None = None) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "float", "strategy": strategy}
    return {"weights": weights, "input_activations": inputs and {"num_bits": inputs}}


@pytest.mark.parametrize(
    ("groups", "name"),
    [
        ([group(8, "block", 8)], "FP8_BLOCK"),
        ([group(8, "channel", 8)], "FP8_DYNAMIC"),
        ([group(8, "tensor", 8)], "FP8"),
        ([group(4, "tensor_group")], "NVFP4A16"),
        ([group(4, "tensor_group"), group(8, "tensor", 8)], "NVFP4A16+FP8"),
        ([group(4, "tensor_group"), group(8, "block", 8)], "NVFP4A16+FP8_BLOCK"),
    ],
)
def test_compressed_tensors(groups: list[dict[str, Any]], name: str) -> None:
    declared = {"config_groups": {f"group_{at}": each for at, each in enumerate(groups)}}
    assert COMPRESSED.stored_type(SimpleNamespace(details={"quantization": declared})) == name


@pytest.mark.parametrize(("more", "name"), [({"weight_block_size": [128, 128]}, "FP8_BLOCK"), ({}, "FP8")])
def test_native(more: dict[str, Any], name: str) -> None:
    declared = {"quant_method": "fp8", "activation_scheme": "dynamic", **more}
    assert NATIVE_FP8.stored_type(SimpleNamespace(details={"quantization": declared})) == name
