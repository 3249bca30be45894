"""Which model, and what becomes of its head and tower: all of a recipe that looking at a model takes.

It is a module of its own because `qexport inspect` needs nothing else, and recipes are read by pydantic.
"""

from __future__ import annotations

from dataclasses import dataclass

from qexport.doctor.mtp import MtpMode
from qexport.doctor.vision import VisionMode

Place = tuple[str, str | None]
"""A folder or a Hub id, and a revision of the latter."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and what becomes of its MTP head and its vision tower.

    Attributes:
        model: a folder or a Hub id; ``revision`` only for the latter.
        mtp, vision: ``auto``, ``keep``, ``graft`` or ``drop``.
        mtp_from: the base whose head is grafted: a folder or a Hub id.
        vision_from: the base whose tower is; the one of the head where none is named.
        base: the base for both.
        tuned: a folder with the head of that base, tuned to this model: it is taken instead.
    """

    model: str
    revision: str | None = None
    mtp: MtpMode = "auto"
    mtp_from: str | None = None
    mtp_from_revision: str | None = None
    vision: VisionMode = "auto"
    vision_from: str | None = None
    vision_from_revision: str | None = None
    base: str | None = None
    base_revision: str | None = None
    tuned: str | None = None

    @property
    def head_base(self) -> Place | None:
        """Where a head is taken from, and its revision."""
        return self._mtp_base if self.tuned is None else (self.tuned, None)

    @property
    def _mtp_base(self) -> Place | None:
        if self.mtp_from is not None:
            return self.mtp_from, self.mtp_from_revision
        return None if self.base is None else (self.base, self.base_revision)

    @property
    def tower_base(self) -> Place | None:
        """Where a tower is."""
        if self.vision_from is not None:
            return self.vision_from, self.vision_from_revision
        return self._mtp_base if self.base is None else (self.base, self.base_revision)

    @property
    def tower_named(self) -> bool:
        """Whether a base was named for the tower, not for the head alone."""
        return self.vision_from is not None or self.base is not None

    @property
    def models(self) -> tuple[str, ...]:
        """All that is named: folders, or Hub ids."""
        bases = (place[0] for place in (self.head_base, self.tower_base) if place is not None)
        return tuple(dict.fromkeys((self.model, *bases)))
