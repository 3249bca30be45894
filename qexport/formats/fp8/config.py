"""``config.json`` of an FP8 folder: the repaired one, and what loaders have to know about its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport.codecs.contract import FP8_TILE
from qexport.formats.fp8.listing import ignored_patterns, listed_modules
from qexport.formats.linears import declaring

if TYPE_CHECKING:
    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelView
    from qexport.formats.fp8.options import Fp8Options
    from qexport.formats.fp8.scope import Scope


_SCHEMA = "0.19.0"  # the version of compressed-tensors whose config this is


def fp8_config(repaired: Repaired, view: ModelView, scope: Scope, options: Fp8Options) -> dict[str, Any]:
    """The whole of ``config.json``."""
    if options.native:
        return declaring(repaired, view, _native(listed_modules(repaired, view, scope)))
    return declaring(repaired, view, _compressed_tensors(ignored_patterns(repaired, view, scope)))


def _native(listed: list[str]) -> dict[str, Any]:
    return {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [FP8_TILE, FP8_TILE],
        "modules_to_not_convert": listed,
    }


def _compressed_tensors(ignore: list[str]) -> dict[str, Any]:
    common = {
        "num_bits": 8,
        "type": "float",
        "symmetric": True,
        "actorder": None,
        "observer": None,
        "observer_kwargs": {},
        "scale_dtype": None,
        "zp_dtype": None,
    }
    weights = {
        **common,
        "strategy": "block",
        "block_structure": [FP8_TILE, FP8_TILE],
        "group_size": None,
        "dynamic": False,
    }
    activations = {
        **common,
        "strategy": "group",
        "group_size": FP8_TILE,
        "block_structure": None,
        "dynamic": True,
    }
    group = {
        "format": "float-quantized",
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
    }
    return {
        "config_groups": {"FP8_BLOCK": group},
        "format": "float-quantized",
        "global_compression_ratio": None,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": _SCHEMA,
    }
