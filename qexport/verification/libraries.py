"""Dequantizers of the libraries that define the formats: what they make of packed rows, in float32.

None of their code is ours, and none of ours is theirs: where both make the same numbers, the file means what
its other readers take it for. They are called in this process, with tensors and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qexport.codecs.contract import FP8_TILE

if TYPE_CHECKING:
    import torch

    from qexport.artifacts.forms import Form
    from qexport.artifacts.packed import PackedRows


@dataclass(frozen=True)
class Library:
    """One that has dequantizers.

    Attributes:
        name: as the index calls it.
        module: what is imported of it.
        extra: of qexport, which installs it.
        knows: whether it has one for such rows.
        read: the numbers, ``(rows, columns)``.
    """

    name: str
    module: str
    extra: str
    knows: Callable[[PackedRows], bool]
    read: Callable[[PackedRows], torch.Tensor]

    @property
    def installed(self) -> bool:
        return find_spec(self.module) is not None

    @property
    def version(self) -> str:
        return version(self.name)


def _compressed_tensors(rows: PackedRows) -> torch.Tensor:
    import torch

    dequantize, unpack, arguments = _of_compressed_tensors()
    assert rows.scales is not None
    scales = (
        rows.scales.view(torch.float8_e4m3fn).float() if rows.form.kind == "nvfp4" else rows.scales.float()
    )
    args = arguments(rows.form)
    if rows.form.kind == "fp8":
        codes = rows.codes.view(torch.float8_e4m3fn)
        return _tensor(dequantize(codes.float(), scales, args=args, dtype=torch.float32))
    assert rows.shared is not None
    shared = rows.shared.float()
    count, width = rows.codes.shape
    levels = unpack(rows.codes.view(torch.uint8), count, 2 * width)
    divisor = shared if rows.divides else 1 / shared
    return _tensor(dequantize(levels.float(), scales, args=args, dtype=torch.float32, global_scale=divisor))


def _integers(rows: PackedRows) -> torch.Tensor:
    """As compressed-tensors decompresses a module."""
    import torch

    decompress, scheme = _of_integers()
    assert rows.scales is not None
    assert rows.columns is not None
    stored = {
        "weight_packed": rows.codes,
        "weight_scale": rows.scales.float(),
        "weight_shape": torch.tensor([len(rows.codes), rows.columns]),
    }
    if rows.points is not None:
        stored["weight_zero_point"] = rows.points
    return _tensor(decompress(stored, scheme(rows.form, symmetric=rows.points is None))["weight"])


@cache
def _of_integers() -> tuple[Callable[..., Any], Callable[..., Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    def scheme(form: Form, *, symmetric: bool) -> Any:
        how = {"strategy": "group", "group_size": form.group} if form.group else {"strategy": "channel"}
        weights = QuantizationArgs(num_bits=form.bits, type="int", symmetric=symmetric, **how)
        return QuantizationScheme(targets=["Linear"], weights=weights)

    return PackedQuantizationCompressor.decompress, scheme


def _awq(rows: PackedRows) -> torch.Tensor:
    """As compressed-tensors converts AutoAWQ's matrices into its own, which it then decompresses."""
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    decompress, scheme = _of_integers()
    assert rows.scales is not None
    assert rows.points is not None
    converter = AutoAWQConverter(group_size=rows.form.group)
    parts = {"qweight": rows.codes, "qzeros": rows.points, "scales": rows.scales.float()}
    made = converter.process({f"m.{word}": part for word, part in parts.items()})
    stored = {name.removeprefix("m."): part for name, part in made.items()}
    return _tensor(decompress(stored, scheme(rows.form, symmetric=False))["weight"])


def _gptq(rows: PackedRows) -> torch.Tensor:
    """As AutoRound's linear layers multiply by it: with one, in float32, that is the matrix."""
    import torch

    as_they_are, less_one = _of_auto_round()
    assert rows.scales is not None
    assert rows.points is not None
    assert rows.columns is not None
    outputs = rows.codes.shape[1]
    kind = less_one if rows.less_one else as_they_are
    layer = kind(rows.form.bits, rows.form.group or -1, rows.columns, outputs, bias=False)
    layer.qweight, layer.qzeros, layer.scales = rows.codes, rows.points, rows.scales.float()
    if rows.places is not None:
        layer.register_buffer("g_idx", rows.places)
    return _tensor(layer(torch.eye(rows.columns)).T)


@cache
def _of_auto_round() -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    return qlinear_torch.QuantLinear, qlinear_torch_zp.QuantLinear


def _tensor(made: Any) -> torch.Tensor:
    """The libraries are not typed."""
    found: torch.Tensor = made
    return found


@cache
def _of_compressed_tensors() -> tuple[Callable[..., Any], Callable[..., Any], Callable[[Form], Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
        from compressed_tensors.quantization import QuantizationArgs
        from compressed_tensors.quantization.lifecycle.forward import dequantize

    @cache
    def arguments(form: Form) -> Any:
        strategies: dict[str, dict[str, Any]] = {
            "group": {"strategy": "tensor_group", "group_size": form.group},
            "tile": {"strategy": "block", "block_structure": [FP8_TILE, FP8_TILE]},
            "row": {"strategy": "channel"},
            "matrix": {"strategy": "tensor"},
        }
        return QuantizationArgs(
            num_bits=form.bits, type="float", symmetric=True, dynamic=False, **strategies[form.per]
        )

    return dequantize, unpack_fp4_from_uint8, arguments


def _modelopt(rows: PackedRows) -> torch.Tensor:
    import torch

    fp4, fp8 = _of_modelopt()
    assert rows.scales is not None
    if rows.form.kind == "fp8":
        codes = rows.codes.view(torch.float8_e4m3fn)
        scale = rows.scales.float().view(())
        return _tensor(fp8(codes.shape, torch.float32, codes).dequantize(torch.float32, scale=scale))
    assert rows.shared is not None
    shape = torch.Size((len(rows.codes), 2 * rows.codes.shape[1]))
    packed = fp4(shape, torch.float32, rows.codes.view(torch.uint8))
    scales = rows.scales.view(torch.float8_e4m3fn)
    shared, sizes = rows.shared.float().view(()), {-1: rows.form.group}
    return _tensor(packed.dequantize(torch.float32, scale=scales, double_scale=shared, block_sizes=sizes))


@cache
def _of_modelopt() -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from modelopt.torch.quantization.qtensor.fp8_tensor import FP8QTensor
        from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    return NVFP4QTensor, FP8QTensor


def _mlx(rows: PackedRows) -> torch.Tensor:
    """Scales in float32, so that nothing is rounded to bfloat16 on the way."""
    import mlx.core as mx
    import numpy as np
    import torch

    assert rows.scales is not None
    with mx.stream(mx.cpu):
        words = mx.array(rows.codes.view(torch.uint8).numpy().view(np.uint32))
        how: dict[str, Any] = {"group_size": rows.form.group, "bits": rows.form.bits}
        if rows.form.kind == "affine":
            assert rows.biases is not None
            scales, biases = (mx.array(part.float().numpy()) for part in (rows.scales, rows.biases))
            found = mx.dequantize(words, scales, biases, mode="affine", **how)
        else:
            if rows.shared is not None:
                how["global_scale"] = mx.array(rows.shared.float().numpy()[0])
            scales = mx.array(rows.scales.view(torch.uint8).numpy())
            found = mx.dequantize(words, scales, mode=rows.form.kind, dtype=mx.float32, **how)
        return torch.from_numpy(np.array(found))


def _gguf(rows: PackedRows) -> torch.Tensor:
    """The scale of a whole matrix is beside its blocks, and left to whoever multiplies."""
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    found = dequantize(rows.codes.numpy(), GGMLQuantizationType[rows.form.kind])
    values = torch.from_numpy(np.asarray(found, np.float32))
    return values if rows.shared is None else values * rows.shared


LIBRARIES = (
    Library(
        "compressed-tensors",
        "compressed_tensors",
        "reference",
        lambda rows: not rows.mlx and rows.form.kind in ("fp8", "nvfp4"),
        _compressed_tensors,
    ),
    Library(
        "compressed-tensors",
        "compressed_tensors",
        "reference",
        lambda rows: rows.form.kind == "int" and rows.columns is not None and not rows.turned,
        _integers,
    ),
    Library("compressed-tensors", "compressed_tensors", "reference", lambda rows: rows.turned == "awq", _awq),
    Library(
        "auto-round", "auto_round_extension", "llm-compressor", lambda rows: rows.turned == "gptq", _gptq
    ),
    Library(
        "nvidia-modelopt",
        "modelopt",
        "modelopt",
        lambda rows: (
            not rows.mlx
            and (rows.form.kind == "nvfp4" or (rows.form.kind, rows.form.per) == ("fp8", "matrix"))
            and not rows.divides
        ),
        _modelopt,
    ),
    Library("mlx", "mlx", "mlx", lambda rows: rows.mlx, _mlx),
    Library("gguf", "gguf", "llama", lambda rows: rows.form.per == "block", _gguf),
)
