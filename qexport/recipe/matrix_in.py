"""The importance matrix that all artifacts of a run share, and how it was come by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qexport.evidence.imatrix_file import ImportanceMatrix


@dataclass(frozen=True)
class Matrix:
    """``facts`` say how it was collected; ``None`` where it came from a file or is not there yet."""

    values: ImportanceMatrix
    facts: Mapping[str, Any] | None = None
