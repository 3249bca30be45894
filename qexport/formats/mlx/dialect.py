"""How mlx-lm, and for vision towers mlx-vlm, names a family's tensors; what it has of its own is the
:class:`~qexport.families.family.Dialect` in its file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.errors import InputError
from qexport.families.known import FAMILIES
from qexport.families.roles import BIAS_ROLES, EXPERT_ROLES, Block

if TYPE_CHECKING:
    from qexport.doctor.repaired import Repaired
    from qexport.families.family import Dialect
    from qexport.families.view import ModelTensor, ModelView


def dialect_of(view: ModelView) -> Dialect:
    """The dialect of a model.

    Raises:
        InputError: mlx-lm has no model for the family, or its layers lack biases that this one has.
    """
    dialect = FAMILIES[view.family].dialect
    if dialect is None:
        known = ", ".join(family.name for family in FAMILIES.values() if family.dialect is not None)
        raise InputError(f"MLX export does not know the {view.family} family; it knows {known}")
    alien = [t.name for t in view if t.role in BIAS_ROLES - dialect.biases and t.block is not Block.MTP]
    if alien:
        raise InputError(f"mlx-lm's {view.family} has no biases, but there is {alien[0]}")
    return dialect


def stored_name(dialect: Dialect, repaired: Repaired, tensor: ModelTensor) -> str:
    """The name after mlx-lm's ``sanitize``; that of the weight where a module is quantized."""
    name = tensor.name
    if tensor.block is Block.VISION:
        vision = repaired.family.vision
        assert vision is not None
        return (dialect.tower or "") + name.removeprefix(vision.tower.prefix)
    if tensor.role in EXPERT_ROLES:
        name = name.replace(".mlp.experts.", ".mlp.switch_mlp.")
    return (dialect.wrapper_prefix if repaired.wrapper else "") + dialect.prefix + name


def module_path(name: str) -> str:
    """The module that a weight belongs to."""
    return name.removesuffix(".weight")
