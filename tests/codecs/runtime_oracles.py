"""What MLX, ModelOpt and compressed-tensors make of rows; each is imported when it is first asked.

None is a dependency. The goldens hold what they gave (make_golden_runtimes.py), and the tests that call
them are skipped where they are missing.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
import torch

Affine = tuple[np.ndarray, torch.Tensor, torch.Tensor]
Bytes = tuple[np.ndarray, np.ndarray]

needs_mlx = pytest.mark.skipif(find_spec("mlx") is None, reason="mlx is not installed")
needs_modelopt = pytest.mark.skipif(find_spec("modelopt") is None, reason="nvidia-modelopt is not installed")
needs_compressed_tensors = pytest.mark.skipif(
    find_spec("compressed_tensors") is None, reason="compressed-tensors is not installed"
)


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def finite(rows: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Rows in a narrower dtype, with 1 where it has no number for them."""
    narrow = torch.from_numpy(rows).to(dtype)
    return torch.where(narrow.isfinite(), narrow, torch.ones_like(narrow))


def mlx_affine(rows: torch.Tensor, bits: int, group: int) -> Affine:
    """mx.quantize(mode="affine"): the packed bytes, the scales, the biases."""
    import mlx.core as mx

    packed, scales, biases = mx.quantize(_to_mlx(rows), group_size=group, bits=bits, mode="affine")
    return np.array(packed).view(np.uint8), _from_mlx(scales), _from_mlx(biases)


def mlx_dequantized(quantized: Affine, bits: int, group: int) -> torch.Tensor:
    """mx.dequantize of what :func:`mlx_affine` gave."""
    import mlx.core as mx

    packed, scales, biases = quantized
    words = mx.array(packed.view(np.uint32))
    return _from_mlx(
        mx.dequantize(words, _to_mlx(scales), _to_mlx(biases), group_size=group, bits=bits, mode="affine")
    )


def mlx_float(rows: torch.Tensor, mode: str) -> Bytes:
    """mx.quantize of a float mode: the packed bytes and the scales."""
    import mlx.core as mx

    packed, scales = mx.quantize(_to_mlx(rows), mode=mode)
    return np.array(packed).view(np.uint8), np.array(scales)


def mlx_float_dequantized(quantized: Bytes, mode: str) -> torch.Tensor:
    """mx.dequantize of what :func:`mlx_float` gave, in float32."""
    import mlx.core as mx

    packed, scales = mx.array(quantized[0].view(np.uint32)), mx.array(quantized[1])
    return _from_mlx(mx.dequantize(packed, scales, mode=mode, dtype=mx.float32))


def _to_mlx(rows: torch.Tensor):
    import mlx.core as mx

    return mx.array(rows.float().numpy()).astype(getattr(mx, str(rows.dtype).removeprefix("torch.")))


def _from_mlx(values) -> torch.Tensor:
    import mlx.core as mx

    dtype = getattr(torch, str(values.dtype).removeprefix("mlx.core."))
    return torch.from_numpy(np.array(values.astype(mx.float32))).to(dtype)


def modelopt_nvfp4(rows: torch.Tensor, shared: np.float32) -> Bytes:
    """NVFP4QTensor.quantize: packed levels and E4M3 scales."""
    tensor, factor = _modelopt(), torch.tensor(shared)
    scales, _ = tensor.get_weights_scaling_factor(rows, 16, factor)
    quantized, _, _ = tensor.quantize(rows.clone(), 16, scales, factor)
    return quantized._quantized_data.numpy(), scales.view(torch.uint8).numpy()


def modelopt_global_scale(rows: torch.Tensor) -> np.float32:
    return np.float32(_modelopt().get_weights_scaling_factor_2(rows).numpy())


def modelopt_dequantized(quantized: Bytes, shared: np.float32) -> torch.Tensor:
    """NVFP4QTensor.dequantize; it has no negative zero."""
    packed, scales = quantized
    shape = torch.Size((len(packed), packed.shape[1] * 2))
    tensor = _modelopt()(shape, torch.float32, torch.from_numpy(packed))
    e4m3 = torch.from_numpy(scales).view(torch.float8_e4m3fn)
    return tensor.dequantize(
        torch.float32, scale=e4m3, double_scale=torch.tensor(shared), block_sizes={-1: 16}
    )


@cache
def _modelopt():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

        return NVFP4QTensor


def modelopt_fp8(rows: torch.Tensor) -> tuple[np.ndarray, float]:
    """What the exporter makes of a linear layer quantized with FP8_DEFAULT_CFG: codes and scale."""
    _modelopt()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export.unified_export_hf import _export_quantized_weight

        linear = torch.nn.Linear(rows.shape[1], rows.shape[0], bias=False).to(rows.dtype)
        with torch.no_grad():
            linear.weight.copy_(rows)
        model = torch.nn.Sequential(linear)
        one = torch.ones(1, rows.shape[1], dtype=rows.dtype)
        mtq.quantize(model, mtq.FP8_DEFAULT_CFG, lambda m: m(one))
        _export_quantized_weight(model[0], rows.dtype)
    return model[0].weight.view(torch.uint8).numpy(), model[0].weight_scale.item()


def ct_nvfp4(rows: torch.Tensor, shared: np.float32) -> Bytes:
    """compressed-tensors' nvfp4-pack-quantized with the global scale ``1 / shared``."""
    return ct_nvfp4_divided(rows, np.float32(1) / shared)


def ct_nvfp4_divisor(rows: torch.Tensor) -> np.float32:
    """The global scale of rows, as compressed-tensors stores it."""
    helpers, *_ = _ct_fp4()
    return np.float32(helpers.generate_gparam(rows.amin(), rows.amax()).item())


def ct_nvfp4_divided(rows: torch.Tensor, divisor: np.float32) -> Bytes:
    """nvfp4-pack-quantized with a global scale as it is stored."""
    helpers, _, args, scheme = _ct_fp4()
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor

    inverse = torch.tensor([divisor], dtype=torch.float32)
    blocks = rows.view(len(rows), -1, 16)
    scales, _ = helpers.calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=inverse)
    state = {"weight": rows, "weight_scale": scales, "weight_global_scale": inverse}
    made = NVFP4PackedCompressor.compress(state, scheme)
    return made["weight_packed"].numpy(), made["weight_scale"].view(torch.uint8).numpy()


def ct_nvfp4_dequantized(quantized: Bytes, shared: np.float32) -> torch.Tensor:
    """In float32."""
    _, forward, args, _ = _ct_fp4()
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    packed, scales = quantized
    levels = unpack_fp4_from_uint8(torch.from_numpy(packed), len(packed), packed.shape[1] * 2)
    wide = torch.from_numpy(scales).view(torch.float8_e4m3fn).to(torch.float32)
    inverse = torch.tensor([1 / shared], dtype=torch.float32)
    return forward.dequantize(levels.float(), wide, args=args, global_scale=inverse, dtype=torch.float32)


def ct_fp8_scales(rows: torch.Tensor) -> torch.Tensor:
    """calculate_qparams of 128 by 128 tiles, rounded to bfloat16."""
    helpers, _, args = _ct_fp8()
    tiles = rows.view(len(rows) // 128, 128, -1, 128)
    if rows.dtype != torch.bfloat16:
        tiles = tiles.float()
    scales, _ = helpers.calculate_qparams(tiles.amin((1, 3)), tiles.amax((1, 3)), args)
    return scales.to(torch.bfloat16)


def ct_fp8_codes(rows: torch.Tensor, scales: torch.Tensor) -> np.ndarray:
    """quantize in float32 with given scales."""
    _, forward, args = _ct_fp8()
    codes = forward.quantize(
        rows.float(), scale=scales.float(), zero_point=None, args=args, dtype=torch.float8_e4m3fn
    )
    return codes.view(torch.uint8).numpy()


def ct_fp8_block(rows: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """FP8_BLOCK as llm-compressor calls it, in the dtype of the rows: codes and scales."""
    helpers, forward, args = _ct_fp8()
    tiles = rows.view(len(rows) // 128, 128, -1, 128)
    scales, _ = helpers.calculate_qparams(tiles.amin((1, 3)), tiles.amax((1, 3)), args)
    codes = forward.quantize(rows, scale=scales, zero_point=None, args=args, dtype=torch.float8_e4m3fn)
    return codes.view(torch.uint8).numpy(), scales


def ct_fp8_dequantized(codes: np.ndarray, scales: torch.Tensor) -> torch.Tensor:
    """The converter that reads ``weight_scale_inv``, in float32."""
    _ct_fp8()
    from compressed_tensors.entrypoints.convert import FP8BlockDequantizer

    reader = FP8BlockDequantizer(targets=[], weight_block_size=(128, 128), dtype=torch.float32)
    return reader._create_dequantized_weight(torch.from_numpy(codes).view(torch.float8_e4m3fn), scales)


@cache
def _ct_fp4():
    helpers, forward, quantization = _compressed_tensors()
    args = quantization.QuantizationArgs(
        num_bits=4,
        type="float",
        strategy="tensor_group",
        group_size=16,
        symmetric=True,
        dynamic=False,
        scale_dtype="torch.float8_e4m3fn",
    )
    return helpers, forward, args, quantization.QuantizationScheme(targets=["Linear"], weights=args)


@cache
def _ct_fp8():
    helpers, forward, quantization = _compressed_tensors()
    args = quantization.QuantizationArgs(
        num_bits=8,
        type="float",
        strategy="block",
        block_structure=[128, 128],
        symmetric=True,
        dynamic=False,
    )
    return helpers, forward, args


@cache
def _compressed_tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compressed_tensors import quantization
        from compressed_tensors.compressors.nvfp4 import base, helpers  # noqa: F401
        from compressed_tensors.entrypoints import convert  # noqa: F401
        from compressed_tensors.quantization.lifecycle import forward
        from compressed_tensors.quantization.utils import helpers as qparams

        return qparams, forward, quantization
