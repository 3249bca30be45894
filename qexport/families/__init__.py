"""Model families as data, and the model view that every format works from."""

from qexport.families.build import build_view
from qexport.families.family import Family
from qexport.families.known import FAMILIES, family_of
from qexport.families.roles import Block, Role
from qexport.families.view import ModelTensor, ModelView

__all__ = ["FAMILIES", "Block", "Family", "ModelTensor", "ModelView", "Role", "build_view", "family_of"]
