"""One artifact in a report: what its receipt says, and what it is called there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qexport.receipt.measures import Measures
from qexport.receipt.speeds import Bench
from qexport.receipt.state import State
from qexport.receipt.types import Artifact


@dataclass(frozen=True)
class Row:
    """An artifact; ``name`` is the file, or the folder."""

    artifact: Artifact
    name: str

    @property
    def kind(self) -> str:
        return self.artifact.kind

    @property
    def label(self) -> str:
        return self.artifact.label

    @property
    def size(self) -> int:
        return self.artifact.size

    @property
    def format(self) -> str:
        return self.artifact.format

    @property
    def drafter(self) -> bool:
        """An MTP head in a folder of its own; what was measured is in the row of its trunk."""
        return self.artifact.is_drafter

    @property
    def state(self) -> State:
        return self.artifact.state

    @property
    def measures(self) -> Measures:
        return self.artifact.measures

    @property
    def bench(self) -> Bench | None:
        return self.artifact.bench

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.artifact.options

    @property
    def runtime(self) -> str:
        """What ran it."""
        return "" if self.artifact.verification is None else str(self.artifact.verification.engine)

    @property
    def title(self) -> str:
        """What charts call it: the label, with the format where the label does not say it."""
        names = {"mlx": "MLX", "merged": "merged"}
        prefix = names.get(self.format, "")
        return self.label if not prefix or prefix in self.label else f"{prefix} {self.label}"
