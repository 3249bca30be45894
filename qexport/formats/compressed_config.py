"""``quantization_config`` of compressed-tensors, as llm-compressor writes it: schemes and their modules.

One scheme takes every linear layer that ``ignore`` does not name. Of several, each names what it takes as
regular expressions and none says ``Linear``: SGLang asks for the class of a fused layer before it asks for
its parts, so a class would take what another group names. The top then says ``mixed-precision``, and readers
go by the ``format`` of the group
(https://github.com/vllm-project/compressed-tensors, ``QuantizationConfig.merge``). What no group names has to
be in ``ignore`` all the same: SGLang refuses a layer that is in neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport.codecs.contract import FP8_TILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_LIBRARY = "0.19.0"  # the compressed-tensors whose schema this is
_COMMON = {
    "type": "float",
    "symmetric": True,
    "actorder": None,
    "observer": None,
    "observer_kwargs": {},
    "zp_dtype": None,
}
_FLOAT8 = {**_COMMON, "num_bits": 8, "group_size": None, "block_structure": None, "scale_dtype": None}
_FLOAT4 = {
    **_COMMON,
    "num_bits": 4,
    "strategy": "tensor_group",
    "group_size": 16,
    "block_structure": None,
    "dynamic": False,
    "scale_dtype": "torch.float8_e4m3fn",
}
SCHEMES: Mapping[str, Mapping[str, Any]] = {
    "NVFP4A16": {
        "format": "nvfp4-pack-quantized",
        "weights": _FLOAT4,
        "input_activations": None,
    },
    "NVFP4": {
        "format": "nvfp4-pack-quantized",
        "weights": {**_FLOAT4, "observer": "memoryless_minmax"},
        "input_activations": {**_FLOAT4, "dynamic": "local", "observer": "static_minmax"},
    },
    "FP8_BLOCK": {
        "format": "float-quantized",
        "weights": {
            **_FLOAT8,
            "strategy": "block",
            "block_structure": [FP8_TILE, FP8_TILE],
            "dynamic": False,
        },
        "input_activations": {
            **_FLOAT8,
            "strategy": "group",
            "group_size": FP8_TILE,
            "dynamic": True,
        },
    },
    "FP8_DYNAMIC": {
        "format": "float-quantized",
        "weights": {**_FLOAT8, "strategy": "channel", "dynamic": False},
        "input_activations": {**_FLOAT8, "strategy": "token", "dynamic": True},
    },
}
"""llm-compressor's, by its names."""


def compressed_tensors(targets: Mapping[str, Sequence[str]], ignore: Sequence[str]) -> dict[str, Any]:
    """The whole of ``quantization_config``.

    Args:
        targets: expressions of the modules of each scheme; not looked at where there is only one.
        ignore: expressions of all that stay as they are.
    """
    groups = {
        name: {
            **SCHEMES[name],
            "targets": ["Linear"] if len(targets) == 1 else list(modules),
            "output_activations": None,
        }
        for name, modules in targets.items()
    }
    formats = [group["format"] for group in groups.values()]
    return {
        "config_groups": groups,
        "format": "dense" if not formats else formats[0] if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": _LIBRARY,
    }
