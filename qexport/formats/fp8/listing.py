"""What loaders are told about modules that are not FP8.

Every reader builds FP8 layers for all linear modules but those listed, and none complains about a bfloat16
weight that it puts into one: it is cast, and the scale stays what memory held. So the list is made from the
plan itself: every module with a matrix that is not FP8 is on it, under its full published path.

Native (``modules_to_not_convert``): vLLM compares whole paths, and takes a stack of experts for listed when
its path is part of a listed one; SGLang compares paths at their dots, parents included; transformers takes an
entry for a regex that begins at the start. Full paths without wildcards say the same to all three. Two are
there for SGLang, which knows fused matrices by the names of its own: ``in_proj_ba``, ``in_proj_qkvz``, and
the vision tower as a whole, whose ``attn.qkv`` it calls otherwise. A dense model never lists ``mlp.gate``, as
official files do: to SGLang before April 2026 and to transformers it means ``mlp.gate_proj``, too.

compressed-tensors (``ignore``): regexes that leave the prefix open, since vLLM and SGLang match names of
their own (``language_model.model.layers...``). The MTP head is one regex.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qexport.families.names import published_name
from qexport.families.roles import EXPERT_ROLES, Block, Role
from qexport.formats.hf import fused_name
from qexport.formats.linears import expressions_of, modules_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qexport.doctor.repaired import Repaired
    from qexport.families.view import ModelTensor, ModelView
    from qexport.formats.fp8.scope import Scope


_SGLANG_FUSED = frozenset({Role.LINEAR_A, Role.LINEAR_B, Role.LINEAR_QKV, Role.LINEAR_Z})
_LAYER = re.compile(r"^.*\.layers\.\d+\.")


def listed_modules(repaired: Repaired, view: ModelView, scope: Scope) -> list[str]:
    """``modules_to_not_convert``, in model order."""
    paths = [_published("lm_head", repaired)]  # tied heads have no tensor, but a module
    for tensor in _matrices(view):
        if tensor.name not in scope.names:
            paths += _paths(tensor, repaired)
    return list(dict.fromkeys([*paths, *(_published(root, repaired) for root in _vision_roots(view))]))


def ignored_patterns(repaired: Repaired, view: ModelView, scope: Scope) -> list[str]:
    """``ignore`` of compressed-tensors."""
    patterns = [r"re:.*lm_head$"]
    inside = (t for t in _matrices(view) if t.block not in (Block.MTP, Block.VISION))
    patterns += expressions_of(inside, lambda name: name not in scope.names, _inside)
    patterns += [f"re:.*{root}.*" for root in _vision_roots(view)]
    if (head := repaired.family.head) is not None and view.mtp_layers:
        patterns.append(f"re:{head.regex(view.layers)}")
    return list(dict.fromkeys(patterns))


def _inside(tensor: ModelTensor) -> str:
    if tensor.role in EXPERT_ROLES:
        return r"mlp\.experts\..*"
    path = _LAYER.sub("", tensor.name.removesuffix(".weight"))
    return f"{re.escape(path.removeprefix('model.'))}$"


def _matrices(view: ModelView) -> Iterator[ModelTensor]:
    """Modules with a matrix."""
    for tensor in view:
        if len(tensor.shape) > 1 and (tensor.name.endswith(".weight") or tensor.role in EXPERT_ROLES):
            yield tensor


def _paths(tensor: ModelTensor, repaired: Repaired) -> Iterator[str]:
    if tensor.role in EXPERT_ROLES:
        yield modules_of(repaired, tensor)[0].rsplit(".", 2)[0]
        return
    (path,) = modules_of(repaired, tensor)
    yield path
    if tensor.role in _SGLANG_FUSED:
        yield fused_name(path, tensor.role)


def _published(module: str, repaired: Repaired) -> str:
    """The published path of a canonical one that may be a whole branch."""
    return published_name(f"{module}.", repaired.family, wrapper=repaired.wrapper).removesuffix(".")


def _vision_roots(view: ModelView) -> list[str]:
    """``visual``; of other towers ``vision_tower``, ``multi_modal_projector``."""
    vision = (tensor.name for tensor in view if tensor.block is Block.VISION)
    return list(dict.fromkeys(name.partition(".")[0] for name in vision))
