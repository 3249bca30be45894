"""From repaired tensors to the model view: roles given, experts stacked, every name and shape checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from qexport.checkpoint.tensors import LogicalTensor, stack_rows
from qexport.errors import InputError
from qexport.families.family import Family, Template
from qexport.families.hyper import Hyper
from qexport.families.names import VISION_NAMES, is_ignorable
from qexport.families.roles import EXPERT_ROLES, Block, Role
from qexport.families.view import ModelTensor, ModelView
from qexport.families.vision import VisionHyper, resolve_vision

# Stacked canonical name -> (fused name, which half of it, per-expert name)
EXPERT_PARTS: Mapping[str, tuple[str, int | None, str]] = {
    "mlp.experts.gate_proj.weight": ("mlp.experts.gate_up_proj", 0, "mlp.experts.{e}.gate_proj.weight"),
    "mlp.experts.up_proj.weight": ("mlp.experts.gate_up_proj", 1, "mlp.experts.{e}.up_proj.weight"),
    "mlp.experts.down_proj.weight": ("mlp.experts.down_proj", None, "mlp.experts.{e}.down_proj.weight"),
}

# What is beside the trunk's layers belongs to blocks of its own.
_BLOCKS = {Role.TOKEN_EMBD: Block.EMBED, Role.OUTPUT_NORM: Block.HEAD, Role.OUTPUT: Block.HEAD}

Expected = tuple[str, Template, Block, int | None]


def expected_tensors(hyper: Hyper, mtp_layers: int, vision: VisionHyper | None = None) -> Iterator[Expected]:
    """Every canonical tensor that the family's templates ask for, in model order.

    Yields (prefix, template, block, layer); ``prefix + template.name`` is the canonical name.
    """
    family, layers = hyper.family, len(hyper.kinds)
    for prefix, template, layer in family.trunk.tensors(hyper.kinds, layers):
        if template.role is Role.OUTPUT and hyper.tied:
            template = replace(template, optional=True)
        yield prefix, template, _BLOCKS.get(template.role, Block.TRUNK), layer
    if family.head is not None:
        for prefix, template, layer in family.head.tensors(("full",) * mtp_layers, layers):
            yield prefix, template, family.head.block, layer
    if vision is not None:
        for prefix, template, layer in vision.vision.tower.tensors(("full",) * vision.layers, layers):
            yield prefix, template, Block.VISION, layer
        if (deepstack := vision.vision.deepstack) is not None:
            kinds = ("full",) * len(vision.deepstack)
            for prefix, template, layer in deepstack.tensors(kinds, layers):
                yield prefix, template, Block.VISION, layer


def expert_tensor(
    prefix: str, name: str, shape: tuple[int, ...], tensors: Mapping[str, LogicalTensor]
) -> tuple[LogicalTensor | None, set[str]]:
    """The stacked expert tensor ``prefix + name`` from whichever layout ``tensors`` has, and the names used.

    Fused ``gate_up_proj`` is ``[experts, 2 * intermediate, hidden]``, gate first; the ``.weight`` suffix on
    fused names is accepted, as some tools add it.
    """
    whole = prefix + name
    if whole in tensors:
        return tensors[whole], {whole}
    fused_name, half, single_name = EXPERT_PARTS[name]
    for suffix in ("", ".weight"):
        fused = tensors.get(prefix + fused_name + suffix)
        if fused is None:
            continue
        used = {prefix + fused_name + suffix}
        if half is None:
            return LogicalTensor(whole, fused.shape, fused.dtype, fused.pieces), used
        if len(fused.shape) != 3 or fused.shape[1] % 2:
            raise InputError(f"{fused.name}: shape {fused.shape} is not [experts, 2 * intermediate, hidden]")
        experts, double, columns = fused.shape
        rows = double // 2
        starts = (e * double + half * rows for e in range(experts))
        parts = [fused.slice_rows(whole, s, s + rows, (rows, columns)) for s in starts]
        return stack_rows(whole, (experts, rows, columns), parts), used
    singles = [prefix + single_name.format(e=e) for e in range(shape[0])]
    present = [tensors[single] for single in singles if single in tensors]
    if not present:
        return None, set()
    if len(present) != len(singles):
        missing = next(single for single in singles if single not in tensors)
        raise InputError(
            f"{missing} is missing: {len(present)} of {len(singles)} experts are there",
            hint="The checkpoint is incomplete; save or download it again.",
        )
    wrong = next((t for t in present if t.shape != shape[1:]), None)
    if wrong is not None:
        raise InputError(f"{wrong.name}: shape {list(wrong.shape)}, but config.json says {list(shape[1:])}")
    return stack_rows(whole, shape, present), set(singles)


def build_view(
    hyper: Hyper,
    *,
    label: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, LogicalTensor],
    mtp_layers: int,
    files: Mapping[str, bytes],
) -> ModelView:
    """Give every tensor its role and check the whole against the family's templates.

    Args:
        tensors: repaired tensors by canonical name; experts in any layout; a vision tower, where there is
            one, is checked against ``vision_config``.
        mtp_layers: how many MTP layers the result is to hold; the head's tensors must agree.

    Raises:
        InputError: tensors are missing, unknown, or of another shape than config.json says; all are named.
    """
    family = hyper.family
    sees = any(name.startswith(VISION_NAMES) for name in tensors)
    vision = resolve_vision(family, config, hyper.hidden) if sees else None
    dims = hyper.dims if vision is None else {**hyper.dims, **vision.dims}
    found: list[ModelTensor] = []
    used: set[str] = set()
    missing: list[str] = []
    wrong: list[str] = []
    for prefix, template, block, layer in expected_tensors(hyper, mtp_layers, vision):
        canonical = prefix + template.name
        shape = template_shape(template, dims, canonical)
        if template.role in EXPERT_ROLES:
            data, names = expert_tensor(prefix, template.name, shape, tensors)
            used |= names
        else:
            data = tensors.get(canonical)
            used.add(canonical)
        if data is None:
            if not template.optional:
                missing.append(canonical)
            continue
        if data.shape != shape:
            wrong.append(f"{canonical}: shape {list(data.shape)}, but config.json says {list(shape)}")
            continue
        found.append(ModelTensor(data, template.role, block, layer))
    unknown = [name for name in tensors if name not in used and not is_ignorable(name)]
    _refuse(family, missing, wrong, unknown)
    return ModelView(
        family=family.name,
        label=label,
        config=config,
        text=hyper.text,
        tensors=tuple(found),
        layers=hyper.layers,
        mtp_layers=mtp_layers,
        files=files,
        resolved=hyper,
        vision=vision,
    )


def template_shape(template: Template, dims: Mapping[str, int], name: str) -> tuple[int, ...]:
    """The shape in numbers; ``name`` is for the message.

    Raises:
        InputError: the config does not give a size that it needs.
    """
    try:
        return tuple(dims[word] for word in template.shape.split())
    except KeyError as error:
        raise InputError(f"config.json lacks the size that {name} needs ({error.args[0]})") from None


def _refuse(family: Family, missing: list[str], wrong: list[str], unknown: list[str]) -> None:
    problems = [
        *(f"missing: {name}" for name in missing),
        *wrong,
        *(f"not part of the {family.name} family: {name}" for name in unknown),
    ]
    if not problems:
        return
    shown = problems[:8] + ([f"... and {len(problems) - 8} more"] if len(problems) > 8 else [])
    raise InputError(
        f"the tensors do not fit config.json ({len(problems)} problems):\n  " + "\n  ".join(shown),
        hint="Does config.json belong to these weights? If so, save or download them again.",
    )
