"""compressed-tensors' declaration: ``quantization_config`` as llm-compressor writes it.

What is not quantized is listed as regular expressions that begin with ``.*``: vLLM matches them at the start
of its own paths (``language_model.model.layers...``), SGLang too, and both with the names of the parts of a
fused layer. An expression names a projection in all layers, or in single ones where a choice divides them.
The MTP head is one expression without a dot before it: runtime paths begin with ``mtp``, and a list of single
modules has made SGLang skip fused ones (https://github.com/sgl-project/sglang/issues/35797). In a folder of
NVFP4 and FP8_BLOCK each scheme lists its modules in the same way; ``ignore`` goes first for all readers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qexport.families.roles import EXPERT_ROLES, Block
from qexport.formats.compressed_config import compressed_tensors
from qexport.formats.fp8.scope import FP8
from qexport.formats.linears import expressions_of, modules_of
from qexport.formats.nvfp4.modelopt import MODULE_ROLES, vision_roots
from qexport.formats.nvfp4.scope import NVFP4

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor, ModelView


def compressed_config(
    repaired: Repaired, view: ModelView, chosen: Mapping[str, str], scheme: str
) -> dict[str, Any]:
    """``quantization_config``; ``scheme``: llm-compressor's name for what is NVFP4."""
    targets = {
        word: _expressions(repaired, view, {name for name in chosen if chosen[name] == algo}.__contains__)
        for algo, word in {NVFP4: scheme, FP8: "FP8_BLOCK"}.items()
        if algo in chosen.values()
    }
    return compressed_tensors(targets, ignored(repaired, view, chosen))


def ignored(repaired: Repaired, view: ModelView, chosen: Mapping[str, str]) -> list[str]:
    """Everything that stays as it is, each thing in one expression where all layers agree."""
    entries = ["re:.*lm_head$", "re:.*embed_tokens$"]
    entries += _expressions(repaired, view, lambda name: name not in chosen)
    entries += [f"re:.*{re.escape(root.rsplit('.', 1)[-1])}.*" for root in vision_roots(repaired, view)]
    head = repaired.family.head
    return [*entries, *([f"re:{head.regex(view.layers)}"] if head is not None and view.mtp_layers else [])]


def _expressions(repaired: Repaired, view: ModelView, wanted: Callable[[str], bool]) -> list[str]:
    inside = [tensor for tensor in view if tensor.block is Block.TRUNK and tensor.role in MODULE_ROLES]
    return expressions_of(inside, wanted, lambda tensor: _inside(repaired, tensor))


def _inside(repaired: Repaired, tensor: ModelTensor) -> str:
    r"""The path below the layer, as an expression: ``self_attn\.q_proj$``; all experts as one."""
    below = modules_of(repaired, tensor)[0].split(f".{tensor.layer}.", 1)[1]
    if tensor.role in EXPERT_ROLES:
        return re.escape(below.split(".experts.", 1)[0] + ".experts") + r"(\..*)?$"
    return re.escape(below) + "$"
