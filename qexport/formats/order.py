"""The order in which the one pass walks over a model: one for all formats.

Files that are laid out in it are written front to back and hashed on the way, whatever else is written from
the same read. GGUF's order is the one that is fixed from outside (llama-quantize's), so it is everybody's:
what is outside blocks first, then block by block, by GGUF name. Models that GGUF does not know come in model
order. The vision tower, which GGUF leaves out, is last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import QexportError
from qexport.families.roles import Block
from qexport.formats.gguf.arch import arch_of, gguf_name
from qexport.formats.gguf.mixture import walk_order

if TYPE_CHECKING:
    from qexport.families.view import ModelTensor, ModelView


def pass_order(view: ModelView) -> tuple[ModelTensor, ...]:
    """The tensors of ``view`` in the order of the pass."""
    text = [tensor for tensor in view if tensor.block is not Block.VISION]
    try:
        arch = arch_of(view)
        text.sort(key=lambda tensor: walk_order(gguf_name(arch, view, tensor)))
    except QexportError:
        pass  # no GGUF of this model, so no order to follow
    return (*text, *(tensor for tensor in view if tensor.block is Block.VISION))
