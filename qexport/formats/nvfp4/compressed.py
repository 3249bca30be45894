"""compressed-tensors' declaration: ``quantization_config`` as llm-compressor writes it for NVFP4A16.

What is not quantized is listed as regular expressions that begin with ``.*``: vLLM matches them at the start
of its own paths (``language_model.model.layers...``), SGLang too, and both with the names of the parts of a
fused layer. An expression names a projection in all layers, or in single ones where a scope divides them. The
MTP head is one expression without a dot before it: runtime paths begin with ``mtp``, and a list of single
modules has made SGLang skip fused ones (https://github.com/sgl-project/sglang/issues/35797).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qexport.families.roles import EXPERT_ROLES, Block
from qexport.formats.linears import left_out, modules_of
from qexport.formats.nvfp4.modelopt import MODULE_ROLES, vision_roots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor, ModelView
    from qexport.formats.nvfp4.scope import Algo


_FORMAT = "nvfp4-pack-quantized"
_LIBRARY = "0.19.0"  # the compressed-tensors whose schema this is


def compressed_config(repaired: Repaired, view: ModelView, chosen: Mapping[str, Algo]) -> dict[str, Any]:
    """``quantization_config``."""
    weights = {
        "num_bits": 4,
        "type": "float",
        "strategy": "tensor_group",
        "group_size": 16,
        "symmetric": True,
        "dynamic": False,
        "scale_dtype": "torch.float8_e4m3fn",
        "actorder": None,
        "block_structure": None,
        "observer": None,
        "observer_kwargs": {},
        "zp_dtype": None,
    }
    group = {
        "format": _FORMAT,
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"NVFP4A16": group},
        "ignore": ignored(repaired, view, chosen),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "transform_config": {},
        "version": _LIBRARY,
    }


def ignored(repaired: Repaired, view: ModelView, chosen: Mapping[str, Algo]) -> list[str]:
    """Everything that stays as it is, each thing in one expression where all layers agree."""
    inside = [t for t in view if t.block is Block.TRUNK and t.role in MODULE_ROLES]
    entries = ["re:.*lm_head$", "re:.*embed_tokens$"]
    entries += left_out(inside, chosen, lambda tensor: _inside(repaired, tensor))
    entries += [f"re:.*{re.escape(root.rsplit('.', 1)[-1])}.*" for root in vision_roots(repaired, view)]
    head = repaired.family.head
    return [*entries, *([f"re:{head.regex(view.layers)}"] if head is not None and view.mtp_layers else [])]


def _inside(repaired: Repaired, tensor: ModelTensor) -> str:
    r"""The path below the layer, as an expression: ``self_attn\.q_proj$``; all experts as one."""
    below = modules_of(repaired, tensor)[0].split(f".{tensor.layer}.", 1)[1]
    if tensor.role in EXPERT_ROLES:
        return re.escape(below.split(".experts.", 1)[0] + ".experts") + r"(\..*)?$"
    return re.escape(below) + "$"
