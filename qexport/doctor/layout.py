"""Expert layouts: one by one, or fused into two tensors a layer; and the way from one to the other.

Conversion moves rows between logical tensors: nothing is read. Fused is ``mlp.experts.gate_up_proj``
``[experts, 2 * intermediate, hidden]``, gate first, and ``mlp.experts.down_proj``, without ``.weight``:
https://github.com/huggingface/transformers/blob/main/src/transformers/models/qwen3_5_moe/modeling_qwen3_5_moe.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

from qexport.checkpoint.tensors import LogicalTensor, stack_rows
from qexport.errors import InputError
from qexport.families.build import EXPERT_PARTS, expert_tensor

_EXPERT = re.compile(r"^(?P<block>.+\.layers\.\d+\.)mlp\.experts\.(?P<rest>.+)$")
_ONE = re.compile(r"^(?P<expert>\d+)\.(gate|up|down)_proj\.weight$")
_GATE, _UP, _DOWN = EXPERT_PARTS
# A head behind the trunk's layers begins so, too: it is stored as the trunk is, by the same tool.
_TRUNK = "model.layers."


class ExpertLayout(StrEnum):
    """How a block stores its experts."""

    FUSED = "fused"
    SINGLE = "one by one"
    # Fused names with ".weight" or three stacked tensors: some tools write them, few readers take them.
    OTHER = "stacked in another way"


def expert_layouts(tensors: Mapping[str, LogicalTensor]) -> dict[str, ExpertLayout]:
    """The layout of each block that has experts, by the block's prefix (``model.layers.0.``)."""
    found: dict[str, ExpertLayout] = {}
    for name in tensors:
        if not (match := _EXPERT.match(name)):
            continue
        rest = match["rest"]
        if _ONE.match(rest):
            layout = ExpertLayout.SINGLE
        else:
            layout = ExpertLayout.FUSED if rest in ("gate_up_proj", "down_proj") else ExpertLayout.OTHER
        if found.setdefault(match["block"], layout) is not layout:
            found[match["block"]] = ExpertLayout.OTHER
    return found


def trunk_layout(
    tensors: Mapping[str, LogicalTensor], published: ExpertLayout = ExpertLayout.FUSED
) -> ExpertLayout | None:
    """The layout that the whole model is to have: that of its first trunk block with a usual one, else
    ``published``; ``None`` without experts."""
    trunk = [layout for block, layout in expert_layouts(tensors).items() if block.startswith(_TRUNK)]
    usual = [layout for layout in trunk if layout is not ExpertLayout.OTHER]
    return usual[0] if usual else published if trunk else None


def convert_experts(tensors: Mapping[str, LogicalTensor], to: ExpertLayout) -> dict[str, LogicalTensor]:
    """The same tensors with the experts of every block laid out as ``to``.

    Raises:
        InputError: a block's experts are incomplete, or their shapes or dtypes do not fit together.
    """
    done: dict[str, LogicalTensor] = {}
    layouts = {b: k for b, k in expert_layouts(tensors).items() if k is not to}
    try:
        converted = {b: _convert(b, tensors, to) for b in layouts}
    except ValueError as error:
        raise InputError(f"the experts of one layer have different dtypes or sizes: {error}") from None
    for name, tensor in tensors.items():
        match = _EXPERT.match(name)
        if match and match["block"] in layouts:
            # The whole block at the place of its first expert tensor, so that order is kept.
            done |= converted.pop(match["block"], {})
        else:
            done[name] = tensor
    return done


def _convert(block: str, tensors: Mapping[str, LogicalTensor], to: ExpertLayout) -> dict[str, LogicalTensor]:
    gate, up, down = (_stacked(block, part, tensors) for part in (_GATE, _UP, _DOWN))
    if gate.shape != up.shape or gate.shape[0] != down.shape[0]:
        raise InputError(
            f"{block}mlp.experts: gate {gate.shape}, up {up.shape} and down {down.shape} do not fit."
        )
    experts, rows, columns = gate.shape
    if to is ExpertLayout.FUSED:
        fused, single = f"{block}mlp.experts.gate_up_proj", f"{block}mlp.experts.down_proj"
        parts = [
            part.slice_rows(fused, e * rows, (e + 1) * rows, (rows, columns))
            for e in range(experts)
            for part in (gate, up)
        ]
        whole = stack_rows(fused, (experts, 2 * rows, columns), parts)
        return {fused: whole, single: LogicalTensor(single, down.shape, down.dtype, down.pieces)}
    out: dict[str, LogicalTensor] = {}
    for e in range(experts):
        for part, tensor in ((_GATE, gate), (_UP, up), (_DOWN, down)):
            name = block + EXPERT_PARTS[part][2].format(e=e)
            height, width = tensor.shape[1:]
            out[name] = tensor.slice_rows(name, e * height, (e + 1) * height, (height, width))
    return out


def _stacked(block: str, part: str, tensors: Mapping[str, LogicalTensor]) -> LogicalTensor:
    """One of a block's three stacked expert tensors, from whichever layout it has."""
    pattern = re.compile(
        re.escape(block) + EXPERT_PARTS[part][2].replace(".", r"\.").format(e=r"(\d+)") + "$"
    )
    singles = {int(match[1]): name for name in tensors if (match := pattern.match(name))}
    shape = (max(singles) + 1, *tensors[singles[min(singles)]].shape) if singles else ()
    found, _ = expert_tensor(block, part, shape or (0, 0, 0), tensors)
    if found is None or len(found.shape) != 3:
        raise InputError(f"{block}{part} is missing: the experts of this layer are incomplete.")
    return found
