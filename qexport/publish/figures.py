"""The figures of an artifact, read from its receipt in one way for cards and reports.

They come from an entry's ``measures`` where an export measured them, else from its verification. A measure is
a number, or a mapping whose ``mean`` (or ``value``) is it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qexport.publish.artifacts import mapping

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.publish.artifacts import Artifact

__all__ = ["acceptance", "measure", "measures", "number"]


def measures(artifact: Artifact) -> Mapping[str, Any]:
    """All that was measured, empty where nothing was."""
    return mapping(artifact.entry.get("measures"))


def measure(artifact: Artifact, name: str) -> float | None:
    """A figure of ``measures``; ``None`` where there is none, or none that is a number."""
    value = measures(artifact).get(name)
    found = mapping(value)
    return number(found.get("mean", found.get("value")) if found else value)


def acceptance(artifact: Artifact) -> float | None:
    """Share of drafted tokens accepted, measured or else seen in verification."""
    found = measure(artifact, "acceptance")
    return found if found is not None else number(artifact.verification.get("acceptance"))


def number(value: object) -> float | None:
    """``value`` where it is a finite number, else ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
