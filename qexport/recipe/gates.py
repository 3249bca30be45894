"""Limits that an artifact must keep to be published: one number, or one for each type of a ladder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from qexport.recipe.fields import EITHER, MAPPING, ONE, Number, Part, Size


@dataclass(frozen=True)
class Limits:
    """Limits for one file or folder; ``None`` is no limit."""

    min_agreement: float | None = None
    max_mean_kld: float | None = None
    min_same_top1: float | None = None
    min_acceptance: float | None = None
    predicted_ratio: float | None = None
    max_size: int | None = None


_Share = Annotated[Number, Field(ge=0, le=1)]
_Nats = Annotated[Number, Field(ge=0)]
_Shares = Annotated[Annotated[dict[str, _Share], MAPPING] | Annotated[_Share, ONE], EITHER]
_Divergences = Annotated[Annotated[dict[str, _Nats], MAPPING] | Annotated[_Nats, ONE], EITHER]
_Factor = Annotated[Number, Field(ge=1)]
_Factors = Annotated[Annotated[dict[str, _Factor], MAPPING] | Annotated[_Factor, ONE], EITHER]
_Sizes = Annotated[Annotated[dict[str, Size], MAPPING] | Annotated[Size, ONE], EITHER]
_OTHERS = ""  # stands for the types that are not named


class Gates(Part):
    """Limits: one for all types, or a mapping from types to theirs.

    Attributes:
        min_agreement: least share of generated tokens that the source would have chosen.
        max_mean_kld: most mean KL divergence from the source, in nats.
        min_same_top1: least share of positions at which the most likely token is the source's.
        min_acceptance: least share of drafts of the MTP head, one token ahead over held-out text, that are
            the model's own choice.
        predicted_ratio: the factor by which the measured divergence may be off the predicted one, either way.
        max_size: bytes, such as 20G.
    """

    min_agreement: _Shares | None = None
    max_mean_kld: _Divergences | None = None
    min_same_top1: _Shares | None = None
    min_acceptance: _Shares | None = None
    predicted_ratio: _Factors | None = None
    max_size: _Sizes | None = None

    def of(self, type_name: str | None) -> Limits:
        """The limits of one type of a ladder, or (``None``) of a folder."""
        return Limits(**{name: _of(limit, type_name or _OTHERS) for name, limit in self})

    def over(self, base: Gates) -> Gates:
        """These, and the limits of ``base`` where nothing is said."""
        merged: dict[str, Any] = {}
        for name, limit in self:
            below = getattr(base, name)
            merged[name] = {_OTHERS: below, **limit} if isinstance(limit, Mapping) else limit
            if limit is None:
                merged[name] = below
        return self.model_copy(update=merged)

    def types(self) -> list[tuple[str, str]]:
        """(limit, type) of every limit that is for one type."""
        return [(name, key) for name, limit in self if isinstance(limit, Mapping) for key in limit]


def _of(limit: Any, type_name: str) -> Any:
    return limit.get(type_name, limit.get(_OTHERS)) if isinstance(limit, Mapping) else limit
