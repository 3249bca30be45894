"""Limits that an artifact must keep to be published: one number, or one for each type of a ladder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from qexport.recipe.fields import check_keys, field_kinds
from qexport.recipe.problems import closest
from qexport.recipe.tree import Table
from qexport.recipe.values import WRONG, read_size, read_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qexport.recipe.problems import Problems
    from qexport.recipe.tree import Node

__all__ = ["Gates", "Limits", "read_gates"]


@dataclass(frozen=True)
class Limits:
    """Limits for one file or folder; ``None`` is no limit.

    Attributes:
        min_agreement: least share of generated tokens that the source would have chosen.
        max_mean_kld: most mean KL divergence from the source, in nats.
        min_same_top1: least share of positions at which the most likely token is the source's.
        min_acceptance: least share of drafted tokens that are accepted with the MTP head.
        max_size: bytes.
    """

    min_agreement: float | None = None
    max_mean_kld: float | None = None
    min_same_top1: float | None = None
    min_acceptance: float | None = None
    max_size: int | None = None


_SHARES = ("min_agreement", "min_same_top1", "min_acceptance")


@dataclass(frozen=True)
class Gates:
    """``every`` holds for all types; ``by_type`` says otherwise for some."""

    every: Limits = field(default_factory=Limits)
    by_type: Mapping[str, Limits] = field(default_factory=dict)

    def of(self, type_name: str | None) -> Limits:
        """The limits of one type of a ladder, or (``None``) of a folder."""
        if type_name is None or type_name not in self.by_type:
            return self.every
        own = self.by_type[type_name]
        chosen = {each.name: getattr(own, each.name) for each in fields(Limits)}
        return replace(self.every, **{name: value for name, value in chosen.items() if value is not None})


def read_gates(node: Node | None, types: Sequence[str], problems: Problems, base: Gates) -> Gates:
    """Gates from ``gates:``.

    Args:
        types: for which there may be limits of their own.
        base: what holds where nothing is said.
    """
    if node is None:
        return base
    kinds = field_kinds(Limits)
    if not isinstance(node, Table):
        problems.add(node.place, f"a mapping is expected here, with keys such as {', '.join(kinds)}")
        return base
    check_keys(node, kinds, problems)
    every: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for name in kinds:
        value = node.get(name)
        if isinstance(value, Table):
            for key, entry in value.entries.items():
                if key not in types:
                    problems.add(entry.place, f"{key!r} is no type of this artifact{closest(key, types)}")
                    continue
                limit = _limit(name, entry.value, problems)
                if limit is not WRONG:
                    own.setdefault(key, {})[name] = limit
        elif value is not None:
            limit = _limit(name, value, problems)
            if limit is not WRONG:
                every[name] = limit
    by_type = {key: replace(base.by_type.get(key, Limits()), **limits) for key, limits in own.items()}
    return Gates(replace(base.every, **every), {**base.by_type, **by_type})


def _limit(name: str, node: Node, problems: Problems) -> Any:
    if name == "max_size":
        return read_size(node, problems)
    number = read_value(node, float, problems)
    if number is WRONG:
        return WRONG
    if number < 0 or (name in _SHARES and number > 1):
        wanted = "a share between 0 and 1" if name in _SHARES else "not negative"
        problems.add(node.place, f"{name} must be {wanted}")
        return WRONG
    return number
