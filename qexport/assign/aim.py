"""What a chosen assignment is to come to: a size, bits per weight, the size of another type, or a quality.

The option classes of formats that can be sized inherit :class:`Aimed`: so the same words stand in options, on
the command line and in recipes. What an aim comes to is known when it is known what errors cost
(``qexport.run.allocation``): then the options hold the assignment as ``types_from``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from qexport.assign.assignment import Assignment
from qexport.errors import UsageProblem
from qexport.sizes import size_text

SIZED = "QX-"
"""In the name of what has its types chosen for an aim."""
Kind = Literal["size", "bpw", "like", "max_kld"]
Quality = Literal["plain", "best"]
AIMS: tuple[Kind, ...] = ("size", "bpw", "like", "max_kld")


@dataclass(frozen=True)
class Aim:
    """One of them."""

    kind: Kind
    value: Any

    def __str__(self) -> str:
        """In words: ``the size of Q4_K_M``."""
        return {
            "size": lambda: size_text(self.value),
            "bpw": lambda: f"{self.value:g} bits per weight",
            "like": lambda: f"the size of {self.value}",
            "max_kld": lambda: f"a divergence of {self.value:g}",
        }[self.kind]()

    @property
    def label(self) -> str:
        """In names of folders: ``QX-17GB``, ``QX-4.8bpw``, ``QX-6bit``, ``QX-kld0.01``."""
        what = {
            "size": lambda: size_text(self.value).replace(" ", ""),
            "bpw": lambda: f"{self.value:g}bpw",
            "like": lambda: str(self.value),
            "max_kld": lambda: f"kld{self.value:g}",
        }[self.kind]()
        return f"{SIZED}{what}"


@dataclass(frozen=True, kw_only=True)
class Aimed:
    """Options that say what is to come out, instead of the types.

    Attributes:
        size: bytes of all files, headers included, that are not exceeded.
        bpw: bits per weight of all tensors that are not exceeded.
        like: a type, whose size is not exceeded.
        max_kld: the most nats of divergence per token, predicted, in the fewest bytes.
        quality: ``best``: what is written has types that are chosen for the size of the type that was asked
            for, and error feedback, and it is better than that type by measurement on held-out text; where it
            is not, the plain type is written.

    Raises:
        UsageProblem: several of them, or one that is no positive number; the best of no type's size.
    """

    size: int | None = None
    bpw: float | None = None
    like: str | None = None
    max_kld: float | None = None
    quality: Quality = "plain"

    def __post_init__(self) -> None:
        given = [kind for kind in AIMS if getattr(self, kind) is not None]
        words = " and ".join(f"--{kind.replace('_', '-')}" for kind in given)
        if len(given) > 1:
            raise UsageProblem(f"{words}: a file can be made for one of them", hint="Give one.")
        for kind in given:
            value = getattr(self, kind)
            if kind != "like" and not (math.isfinite(value) and value > 0):
                raise UsageProblem(f"{words} is {value}; it has to be more than 0")
        if given and self._chosen and not self.settled:
            raise UsageProblem(
                f"{words} and --types-from both say which types tensors get", hint="Give one of them."
            )
        if self.quality == "best" and (set(given) - {"like"} or (self._chosen and not self.settled)):
            raise UsageProblem(
                "quality best is the best file of a type's size, and better than that type",
                hint="Name the type, and no other size and no types.",
            )

    @property
    def _chosen(self) -> bool:
        return getattr(self, "types_from", None) is not None

    @property
    def aim(self) -> Aim | None:
        """What was asked for."""
        given = (Aim(kind, getattr(self, kind)) for kind in AIMS)
        return next((aim for aim in given if aim.value is not None), None)

    @property
    def settled(self) -> bool:
        """Whether it is known which types that comes to."""
        return isinstance(getattr(self, "types_from", None), Assignment)

    def without_aim(self, **others: Any) -> Self:
        """The same options but for ``others``, which say nothing else of types as a whole."""
        changed: dict[str, Any] = {**dict.fromkeys((*AIMS, "types_from")), "quality": "plain", **others}
        return replace(self, **changed)


def has_aim(given: Mapping[str, Any]) -> bool:
    """Whether the fields that were given say one, or ask for the best of a type's size."""
    return given.get("quality") == "best" or any(given.get(kind) is not None for kind in AIMS)


def wants_best(options: Any) -> bool:
    """Whether a format's options ask for the best file of a size."""
    return isinstance(options, Aimed) and options.quality == "best"


def needs_sensitivity(options: Any) -> bool:
    """Whether a format's options leave types to be chosen by what errors cost."""
    return aim_of(options) is not None or wants_best(options)


def aim_of(options: Any) -> Aim | None:
    """The aim of a format's options, where the format knows any and one was given."""
    return options.aim if isinstance(options, Aimed) else None
