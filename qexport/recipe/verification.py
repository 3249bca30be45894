"""How artifacts are proven: the fields of :class:`VerifyOptions`, for a recipe and for one artifact."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.recipe.fields import read_fields
from qexport.recipe.tree import Scalar
from qexport.recipe.values import WRONG, read_value
from qexport.verify.options import VerifyOptions

if TYPE_CHECKING:
    from qexport.recipe.problems import Problems
    from qexport.recipe.tree import Entry

__all__ = ["read_verify"]

# Of the machine, not of the recipe; limits are the table's, and what a recipe adds are its gates.
_HIDDEN = ("limits", "threads", "llama_server", "runtime_python")


def read_verify(entry: Entry | None, base: VerifyOptions | None, problems: Problems) -> VerifyOptions | None:
    """Options of ``verify:``; ``false`` is ``None``, ``true`` or nothing is ``base``.

    Args:
        base: what holds where nothing is said.
    """
    if entry is None:
        return base
    node = entry.value
    if isinstance(node, Scalar):
        if node.null:
            return base
        wanted = read_value(node, bool, problems)
        return (base or VerifyOptions()) if wanted in (True, WRONG) else None
    return replace(base or VerifyOptions(), **read_fields(node, VerifyOptions, problems, hidden=_HIDDEN))
