"""What a folder's weights are stored as, in one word: the row of :mod:`qexport.verify.thresholds`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport.artifacts.artifact import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.artifacts.artifact import Artifact


_PLAIN = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def folder_type(artifact: Artifact) -> str:
    """``MLX-6bit``, ``MLX-mxfp4``, ``FP8_BLOCK``, ``NVFP4A16``, ``W4A16_NVFP4``, ``BF16`` and the like.

    Of a recipe that mixes widths the config's own, which is the one most weights have.
    """
    quantization: Mapping[str, Any] = artifact.details.get("quantization") or {}
    match artifact.kind:
        case Kind.MLX if quantization:
            mode = quantization.get("mode", "affine")
            return f"MLX-{quantization.get('bits')}bit" if mode == "affine" else f"MLX-{mode}"
        case Kind.FP8:
            return "FP8_BLOCK"
        case Kind.COMPRESSED_TENSORS:
            groups = [str(name) for name in quantization.get("config_groups") or {}]
            four = "nvfp4" in str(quantization.get("format")) or any("NVFP4" in name for name in groups)
            return "NVFP4A16" if four else "FP8_BLOCK"
        case Kind.MODELOPT:
            own = (artifact.details.get("modelopt") or {}).get("quantization") or {}
            return str(quantization.get("quant_algo") or own.get("quant_algo") or "MODELOPT")
    dtype = artifact.config.get("dtype") or artifact.config.get("torch_dtype") or artifact.text.get("dtype")
    return _PLAIN.get(str(dtype), "BF16")
