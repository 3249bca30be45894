"""Where the artifacts came from, in plain words; what all of them share is said once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.report.report import Fact
from qexport.sizes import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qexport.receipt.types import Artifact


def facts(artifacts: Sequence[Artifact]) -> tuple[Fact, ...]:
    """Source, MTP head, calibration, tool."""
    return tuple(
        Fact(what, text)
        for what, of in _FACTS
        for text in dict.fromkeys(filter(None, (of(artifact) for artifact in artifacts)))
    )


def _source(artifact: Artifact) -> str:
    found = artifact.source
    if not found.label:
        return ""
    weighs = f", {size_text(found.weight_bytes)} of weights" if found.weight_bytes else ""
    if found.hub_id and found.revision:
        return f"{found.hub_id} on the Hugging Face Hub, commit {found.revision}{weighs}"
    return f"{found.label}, a local checkpoint{weighs}"


def _head(artifact: Artifact) -> str:
    found = artifact.source
    if found.head == "grafted":
        return (
            f"grafted from {found.base}, bit for bit, since the source had lost its own. It was not trained "
            "further on this model, which is why acceptance is measured."
        )
    return {"own": "the source's own", "dropped": "dropped on request"}.get(found.head, "none")


def _calibration(artifact: Artifact) -> str:
    matrix = artifact.matrix
    if matrix is None:
        return ""
    of = f", from {', '.join(matrix.datasets)}" if matrix.datasets else ""
    many = "" if of or matrix.tokens is None else f", {matrix.tokens:,} tokens"
    return f"importance matrix {matrix.file}{of}{many}"


def _tool(artifact: Artifact) -> str:
    return f"qexport {artifact.tool}" if artifact.tool else ""


_FACTS: tuple[tuple[str, Callable[[Artifact], str]], ...] = (
    ("Source", _source),
    ("MTP head", _head),
    ("Calibration", _calibration),
    ("Written by", _tool),
)
