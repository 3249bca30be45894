"""Reading back a folder of floats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.formats.hf import hf_layout

if TYPE_CHECKING:
    from qexport.artifacts.artifact import Opened


_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def float_type(artifact: Opened) -> str:
    """``BF16`` and the like, by the config."""
    dtype = artifact.config.get("dtype") or artifact.config.get("torch_dtype") or artifact.text.get("dtype")
    return _TYPES.get(str(dtype), "BF16")


PLAIN = hf_layout("safetensors", opens=lambda _: True, stored_type=float_type, plain=True)
